"""How a network does on corrupted images, on images of something else, and under attack."""
