"use strict";
/** Unpacks what the page holds compressed: its other scripts, parameters and test images. */

/** Decompress bytes of zlib in base64. */
async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Run the other scripts; the content security policy has the hash of their text. */
async function runScripts() {
  if (!globalThis.DecompressionStream) {
    document.getElementById("facts").textContent = "This browser is too old: open the page in one of 2023 or later.";
    return;
  }
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await inflate(document.getElementById("scripts").textContent));
  document.head.append(script);
}

if (globalThis.document) runScripts();
