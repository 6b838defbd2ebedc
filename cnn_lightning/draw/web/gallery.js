"use strict";
/** Ways to a picture without drawing: the test images of a model, and files that are chosen, dropped or pasted. */

const one = "one of each class", wrong = "misclassified";

/** The test images of a model, by class. */
class Gallery {
  constructor(onChoose) {
    this.onChoose = onChoose;
    byId("classes").addEventListener("change", () => this.list());
  }

  async open(model) {
    this.model = model;
    byId("gallery").hidden = !model.images;
    byId("images").replaceChildren();
    if (!model.images) return;
    const bytes = await inflate(model.images.pixels), length = size(model.input);
    if (this.model !== model) return;
    const { labels, predicted } = model.images;
    this.images = model.images.decoded ??= labels.map((label, i) => {
      const pixels = bytes.subarray(i * length, (i + 1) * length), canvas = canvasOf(model.input[2], model.input[1]);
      paintPixels(canvas, pixels, model.input[0]);
      return { canvas, model, feed: pixels, label, predicted: predicted[i], first: labels.indexOf(label) === i };
    });
    const present = [...new Set(labels)].sort((a, b) => a - b), choice = [[one, one]];
    if (this.images.some((image) => image.label !== image.predicted)) choice.push([wrong, wrong]);
    choice.push(...present.map((label) => [`label ${model.classes[label]}`, label]));
    byId("classes").replaceChildren(...choice.map(([text, value]) => make("option", { value }, text)));
    this.list();
  }

  list() {
    const wanted = byId("classes").value;
    const belongs = { [one]: (image) => image.first, [wrong]: (image) => image.label !== image.predicted };
    const shown = this.images.filter(belongs[wanted] ?? ((image) => image.label === Number(wanted)));
    byId("images").replaceChildren(...shown.map((image) => this.button(image)));
  }

  button(image) {
    const name = this.describe(image), missed = image.label !== image.predicted;
    const button = make("button", { type: "button", title: name, className: missed ? "wrong" : "" }, image.canvas);
    button.setAttribute("aria-label", name);
    button.setAttribute("aria-pressed", image === this.marked);
    button.addEventListener("click", () => this.onChoose(image));
    image.button = button;
    return button;
  }

  describe({ label, predicted }) {
    const { classes } = this.model;
    return `label ${classes[label]}${label === predicted ? "" : `, predicted ${classes[predicted]}`}`;
  }

  /** Mark the image that is on the pad, if any. */
  mark(content) {
    this.marked?.button?.setAttribute("aria-pressed", false);
    content?.button?.setAttribute("aria-pressed", true);
    const isOurs = content && content.model === this.model;
    byId("about").textContent = isOurs ? `Test image: ${this.describe(content)}` : "";
    this.marked = content;
  }
}

/** Read a picture from a file: {canvas, picture}; the picture is what preparePicture expects. */
async function readPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`The file ${file.name} cannot be read: expected a picture in a format that browsers know`);
  }
  const canvas = canvasOf(bitmap.width, bitmap.height), context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const picture = shrunk(context.getImageData(0, 0, canvas.width, canvas.height)), { data, width, height } = picture;
  Object.assign(canvas, { width, height });
  context.putImageData(new ImageData(data, width, height), 0, 0);
  return { canvas, picture };
}

/** Call back with each file that is chosen, dropped on the page or pasted. */
function watchFiles(onFile) {
  const take = (files) => files?.length && onFile(files[0]), input = byId("file"), paper = byId("paper");
  byId("choose").addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    take(input.files);
    input.value = "";
  });
  document.addEventListener("paste", (event) => take(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    paper.classList.add("over");
  });
  document.addEventListener("dragleave", () => paper.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    paper.classList.remove("over");
    take(event.dataTransfer.files);
  });
}
