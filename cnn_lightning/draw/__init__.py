"""A page that runs a network in the browser: its operators as a program, and the HTML file around it."""
