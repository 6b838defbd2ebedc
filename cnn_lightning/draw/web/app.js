"use strict";

const SLOW = 30, PENS = { thin: 0.5, medium: 1, thick: 1.6 };

/** Wires the page: what is on the pad goes through the network to the bars and maps. */
class App {
  constructor({ models }) {
    this.models = models;
    this.networks = [];
    this.off = new Map();
    this.latencies = [];
    this.pad = new Pad(byId("pad"), () => this.schedule());
    this.gallery = new Gallery((image) => this.pad.show(image));
    this.layers = new Layers(byId("layers"), {
      onSelect: (selected) => {
        this.explain();
        if (selected) announce(this.panel.spoken());
      },
      onToggle: (index, channel) => this.toggle(index, channel),
    });
    this.panel = new Panel(byId("panel"), this.layers);
    this.listen();
    this.ready = this.open(0);
  }

  listen() {
    const on = (id, type, action) => byId(id).addEventListener(type, action);
    const isOnly = (title) => this.models.filter((model) => model.title === title).length < 2;
    const names = this.models.map(({ title, source }) => (isOnly(title) ? title : `${title} (${source})`));
    byId("models").append(...names.map((name, value) => make("option", { value }, name)));
    byId("choice").hidden = this.models.length < 2;
    on("models", "change", () => this.open(Number(byId("models").value)));
    byId("pens").append(...Object.entries(PENS).map(([name, factor]) => this.pen(name, factor)));
    on("undo", "click", () => this.pad.undo());
    on("clear", "click", () => this.pad.clear());
    document.addEventListener("keydown", (event) => {
      if ((event.ctrlKey || event.metaKey) && event.key === "z" && this.pad.items.length) this.pad.undo();
    });
    watchFiles((file) => this.read(file));
    on("prepare", "change", () => this.schedule());
    on("drag", "change", () => this.move(0, 0, true));
    on("centre", "click", () => this.move(0, 0, true));
    watchDrag(byId("feed"), () => byId("drag").checked, (right, down) => this.move(right, down));
    on("occlude", "click", () => this.occlude());
    on("all-on", "click", () => {
      this.off.clear();
      this.schedule();
    });
  }

  pen(name, factor) {
    const dot = make("i"), button = make("button", { type: "button", title: `${name} pen`, "aria-label": name }, dot);
    dot.style.width = dot.style.height = `${factor * 0.7}rem`;
    button.addEventListener("click", () => this.choosePen(name));
    return button;
  }

  choosePen(chosen) {
    // Strokes as wide as in the dataset, when the drawing fills the pad as its images do.
    const { input, pad: border, preparation } = this.model, pixel = PAPER / (input[2] - 2 * border);
    this.penName = chosen;
    if (!this.model) return;
    this.pad.width = PENS[chosen] * pixel * (preparation?.stroke_width ?? 2);
    for (const button of byId("pens").children) button.setAttribute("aria-pressed", button.ariaLabel === chosen);
  }

  load(index) {
    return (this.networks[index] ??= Network.load(this.models[index]));
  }

  async open(index) {
    this.wanted = index;
    const network = await this.load(index), model = this.models[index];
    if (this.wanted !== index) return;
    Object.assign(this, { network, model, shift: [0, 0] });
    const known = model.preparation !== null;
    byId("facts").textContent = [model.source, ...model.facts].join(" · ");
    document.title = byId("title").textContent = model.title;
    byId("hint").textContent = model.preparation?.strokes ? "Draw here, or drop a picture" : "Drop a picture, or draw";
    byId("prepare-name").textContent = `Prepare as in ${model.dataset}`;
    Object.assign(byId("prepare"), { disabled: !known, checked: known });
    [byId("feed"), byId("heat")].forEach((canvas) => {
      Object.assign(canvas, { width: model.input[2], height: model.input[1], image: null });
    });
    this.off.clear();
    this.choosePen(this.penName ?? "medium");
    this.bars = new Bars(model);
    this.layers.open(model);
    this.update();
    await this.gallery.open(model);
  }

  /** Update before the next frame; where a run is slow, only a third of the time, so that drawing stays smooth. */
  schedule() {
    this.since ??= performance.now();
    if (this.isScheduled || !this.model) return;
    this.isScheduled = true;
    const wait = this.cost > SLOW ? Math.max(0, this.ended + 2 * this.cost - performance.now()) : 0;
    const soon = () => requestAnimationFrame(() => this.update());
    if (wait) setTimeout(soon, wait);
    else soon();
  }

  update() {
    const started = performance.now();
    this.isScheduled = false;
    this.hideOcclusion();
    this.feed = null;
    this.say("");
    try {
      this.feed = this.prepare();
    } catch (error) {
      this.say(error.message);
    }
    this.values = null;
    if (this.feed) {
      const input = normalise(this.model, this.feed), isPartial = this.off.size > 0;
      this.values = this.network.run(input, this.off);
      this.bars.show(this.values.at(-1), isPartial ? this.network.run(input).at(-1) : null);
    } else this.bars.clear(this.pad.content() ? "No prediction." : "Nothing drawn yet: no prediction.");
    if (this.since) this.latencies.push(performance.now() - this.since);
    this.since = null;
    this.paint();
    this.ended = performance.now();
    this.cost = this.ended - started;
  }

  /** Turn what is on the pad into the (C, H, W) pixels of the network's input; null if there is nothing. */
  prepare() {
    const { model } = this, content = this.pad.content(), isPrepared = byId("prepare").checked;
    if (!content) return null;
    const [channels, height] = model.input, key = [this.pad.version, isPrepared, this.models.indexOf(model)].join();
    if (this.prepared?.key !== key) {
      const picture = content.picture ?? content.canvas.image, side = height - 2 * model.pad;
      const prepare = () => {
        if (content.model === model) return content.feed;
        const image = isPrepared ? preparePicture(picture, model.preparation) : plainPicture(picture, channels, side);
        return padPicture(image, channels, side, model.pad);
      };
      this.prepared = { key, pixels: prepare() };
    }
    return shiftPicture(this.prepared.pixels, channels, height, ...this.shift);
  }

  paint() {
    const { model, feed, values, off, shift } = this, content = this.pad.content(), moved = shift.some((by) => by);
    paintPixels(byId("feed"), feed ?? new Uint8Array(size(model.input)), model.input[0]);
    const notes = [feed ? [] : "empty", byId("drag").checked ? "arrow keys move it" : []].flat();
    byId("feed").setAttribute("aria-label", [`${model.input[2]} by ${model.input[1]} pixels`, ...notes].join(", "));
    byId("hint").hidden = !!content;
    byId("undo").disabled = !this.pad.items.length;
    byId("clear").disabled = !content;
    byId("occlude").disabled = !feed;
    byId("all-on").disabled = !off.size;
    byId("centre").disabled = !moved;
    byId("moved").textContent = moved ? `moved ${shift[0]} right, ${shift[1]} down`.replaceAll("-", MINUS) : "";
    this.gallery.mark(content);
    this.layers.paint(values, off);
    this.explain();
  }

  explain() {
    if (this.model) this.panel.show(this.layers.selected, this.model, this.network, this.values);
  }

  say(problem) {
    byId("error").textContent = problem && problem[0].toUpperCase() + problem.slice(1);
  }

  async read(file) {
    try {
      this.pad.show(await readPicture(file));
    } catch (error) {
      this.say(error.message);
    }
  }

  move(right, down, isReset = false) {
    if (!this.model) return;
    const most = this.model.input[1], isOn = byId("drag").checked, feed = byId("feed");
    this.shift = isReset ? [0, 0] : [right, down].map((by, i) => Math.min(Math.max(this.shift[i] + by, -most), most));
    feed.classList.toggle("movable", isOn);
    feed.setAttribute("role", isOn ? "application" : "img");
    if (isOn) feed.tabIndex = 0;
    else feed.removeAttribute("tabindex");
    this.schedule();
  }

  toggle(index, channel) {
    const channels = this.off.get(index) ?? new Set();
    if (!channels.delete(channel)) channels.add(channel);
    if (channels.size) this.off.set(index, channels);
    else this.off.delete(index);
    this.schedule();
  }

  async occlude() {
    if (!byId("heat").hidden || this.occlusion) return this.hideOcclusion();
    const { signal } = (this.occlusion = new AbortController()), { model, network, feed, bars: { top }, off } = this;
    const say = (text) => (byId("legend").textContent = text);
    const onProgress = (share) => say(`Covering one place after the other: ${Math.round(100 * share)}%`);
    byId("occlude").setAttribute("aria-pressed", true);
    onProgress(0);
    try {
      const running = { run: (input) => network.run(input, off) };
      const { map, size: side } = await occlusionMap(model, running, feed, top, { signal, onProgress });
      signal.throwIfAborted();
      const [fall, rise] = [1, -1].map((sign) => map.reduce((most, value) => Math.max(most, sign * value), 0));
      const most = Math.max(fall, rise), points = (share) => `${(100 * share).toFixed(1)} points`;
      const [orange, blue] = [0.6, -0.6].map((value) => COLOURS[Math.round(value * 255) + 255] & 0xffffff);
      fill(byId("heat"), (i) => (map[i] < 0 ? blue : orange) | (Math.round(215 * Math.abs(map[i] / most || 0)) << 24));
      byId("heat").hidden = false;
      say(`Orange: a ${side} × ${side} square that covers this place lowers the probability of ` +
        `${model.classes[top]}, by up to ${points(fall)}. Blue: raises it, by up to ${points(rise)}.`);
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  }

  hideOcclusion() {
    this.occlusion?.abort();
    this.occlusion = null;
    byId("heat").hidden = true;
    byId("legend").textContent = "";
    byId("occlude").setAttribute("aria-pressed", false);
  }
}

const app = new App(JSON.parse(byId("data").textContent));

/** For tests and measurements. */
window.draw = {
  ready: app.ready,
  feed: () => app.feed,
  scores: () => app.values?.at(-1),
  latencies: app.latencies,
  async classify(pixels, index = 0) {
    const network = await app.load(index);
    return network.run(normalise(app.models[index], pixels)).at(-1);
  },
};
