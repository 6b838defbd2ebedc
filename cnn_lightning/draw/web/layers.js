"use strict";

const MANY = 64, STRIP = 640;
const ARROWS = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

const within = (place, count) => Math.min(Math.max(Math.floor(place), 0), count - 1);

/** The output of one layer: a map for each channel, or one strip of cells for a flat vector. */
class LayerView {
  constructor(model, index, explained) {
    const layer = model.layers[index], { operation, size: shape, rule, sentence } = describe(layer, model);
    this.index = index;
    this.channels = layer.shape[0];
    [this.height, this.width] = sides(layer.shape);
    this.isStrip = this.height * this.width === 1;
    this.name = layer.name || layer.kind;
    this.range = make("span");
    this.maps = make("div", { className: "maps", role: "group", "aria-label": `${operation}, ${shape}` });
    this.element = make("section", { className: "layer" },
      make("header", {}, make("h3", {}, operation), make("code", {}, layer.name),
        make("span", { className: "size" }, shape)),
      make("p", { className: "facts" }, rule, this.range), make("p", {}, explained ? "" : sentence), this.maps);
    if (this.isStrip) {
      const cell = this.channels > 512 ? 8 : this.channels > 40 ? 16 : 28;
      this.width = Math.min(this.channels, Math.floor(STRIP / cell));
      this.height = Math.ceil(this.channels / this.width);
      this.maps.style.setProperty("--side", `${this.width * cell}px`);
    } else {
      const side = this.channels > MANY ? 48 : this.height < 8 ? 52 : 80;
      this.maps.style.setProperty("--side", `${side}px`);
    }
    this.maps.style.setProperty("--ratio", `${this.width} / ${this.height}`);
    this.canvases = [];
    this.add(this.isStrip ? 1 : Math.min(this.channels, MANY));
    if (this.canvases.length < this.channels && !this.isStrip) {
      const more = make("button", { type: "button" }, `Show all ${this.channels}`);
      more.addEventListener("click", () => {
        more.remove();
        this.add(this.channels);
        this.paint();
        this.mapOf(MANY).focus();
      });
      this.maps.after(more);
    }
  }

  /** Make the maps up to a number of them. */
  add(count) {
    while (this.canvases.length < count) {
      const channel = this.canvases.length, canvas = canvasOf(this.width, this.height);
      const label = this.isStrip ? `${this.name}: ${this.channels} values` : `${this.name}, channel ${channel}`;
      const map = make("div", { className: this.isStrip ? "map strip" : "map", tabIndex: channel ? -1 : 0,
        role: "application", "aria-label": label, "aria-roledescription": "feature map" }, canvas);
      map.place = { view: this, channel };
      this.canvases.push(canvas);
      this.maps.append(map);
    }
  }

  mapOf(channel) {
    return this.canvases[this.isStrip ? 0 : channel]?.parentNode;
  }

  /** Paint the values if they can be seen; null is nothing. */
  paint(values = this.values, off = this.off) {
    Object.assign(this, { values, off });
    if (!this.isVisible) return;
    let low = 0, high = 0;
    for (const value of values ?? []) {
      if (value < low) low = value;
      else if (value > high) high = value;
    }
    const limit = Math.max(-low, high), area = this.height * this.width;
    this.canvases.forEach((canvas, channel) => {
      paintValues(canvas, values ?? [], channel * area, limit);
      if (!this.isStrip) canvas.parentNode.classList.toggle("off", !!off?.has(channel));
    });
    if (this.isStrip) {
      for (const frame of this.maps.querySelectorAll(".dead")) frame.remove();
      for (const channel of off ?? []) this.frame(channel, 0, 0, 1, 1, "frame dead");
    }
    const count = off?.size ? `, ${off.size} of ${this.channels} off` : "";
    this.range.textContent = values ? `from ${show(low)} to ${show(high)}${count}` : " ";
  }

  /** Outline some rows and columns of a channel. */
  frame(channel, top, left, rows, columns, className = "frame") {
    const map = this.mapOf(channel);
    if (!map) return;
    if (this.isStrip) {
      if (columns > 1) [left, columns, rows] = [0, this.width, this.height];
      else [top, left] = [Math.floor(channel / this.width), channel % this.width];
    }
    map.append(frameOf(top, left, rows, columns, this.height, this.width, className));
  }
}

/** An outline of a part of a map of height × width, cut off at its edges. */
function frameOf(top, left, rows, columns, height, width, className = "frame") {
  const frame = make("span", { className });
  const [t, b] = [top, top + rows].map((row) => (100 * Math.min(Math.max(row, 0), height)) / height);
  const [l, r] = [left, left + columns].map((column) => (100 * Math.min(Math.max(column, 0), width)) / width);
  Object.assign(frame.style, { top: `${t}%`, left: `${l}%`, height: `${b - t}%`, width: `${r - l}%` });
  return frame;
}

/** All layers of a model, and the value that is pointed at. */
class Layers {
  constructor(root, { onSelect, onToggle }) {
    Object.assign(this, { root, onSelect, onToggle });
    this.button = make("button", { type: "button", tabIndex: -1 }, "");
    this.button.addEventListener("click", (event) => {
      event.stopPropagation();
      this.toggle();
    });
    this.observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        target.view.isVisible = isIntersecting;
        if (isIntersecting) target.view.paint();
      }
    }, { rootMargin: "100px" });
    root.addEventListener("pointermove", (event) => this.hover(event));
    root.addEventListener("transitionend", () => this.hover(this.last));  // the map has grown under the pointer
    root.addEventListener("click", (event) => this.point(event, true));
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("focusin", ({ target }) => {
      if (target.place && target.matches(":focus-visible") && !this.isLeaving) this.enter(target);
    });
  }

  open(model) {
    this.observer.disconnect();
    this.select(null);
    const explained = new Set();
    this.views = model.layers.map((layer, index) => {
      const view = new LayerView(model, index, explained.has(layer.kind));
      explained.add(layer.kind);
      view.element.view = view;
      return view;
    });
    this.root.replaceChildren(...this.views.map((view) => view.element));
    for (const { element } of this.views) this.observer.observe(element);
  }

  /** Paint what a run gave, or nothing. */
  paint(values, off) {
    this.views.forEach((view, i) => view.paint(values?.[i + 1] ?? null, off.get(i)));
    this.label();
  }

  hover(event) {
    this.last = event;
    if (event?.pointerType === "mouse" && !this.held) this.point(event);
  }

  /** Select nothing, and put the focus back to the map of the last value. */
  leave() {
    const map = this.selected?.view.mapOf(this.selected.channel);
    this.held = false;
    this.select(null);
    this.isLeaving = true;
    map?.focus();
    this.isLeaving = false;
  }

  /** Select the value under the pointer. */
  point(event, held = false) {
    const map = event.target.closest(".map");
    if (!map || event.target === this.button) return;
    const { view, channel } = map.place, box = map.getBoundingClientRect();
    const y = within(((event.clientY - box.top) / box.height) * view.height, view.height);
    const x = within(((event.clientX - box.left) / box.width) * view.width, view.width);
    const selected = view.isStrip ? { view, channel: y * view.width + x, y: 0, x: 0 } : { view, channel, y, x };
    if (selected.channel >= view.channels) return;
    // A second click on a value releases it.
    this.held = held && !(this.held && this.isSelected(selected));
    this.select(selected);
  }

  /** Select a value of a map that the keyboard reached: the last one there, or its middle. */
  enter(map) {
    const { view, channel } = map.place, last = this.selected;
    if (last?.view === view && view.mapOf(last.channel) === map) return;
    const middle = view.isStrip ? { y: 0, x: 0 } : { y: view.height >> 1, x: view.width >> 1 };
    this.held = true;
    this.select({ view, channel, ...(last?.view === view && !view.isStrip ? { y: last.y, x: last.x } : middle) });
  }

  key(event) {
    const map = event.target.closest(".map"), step = ARROWS[event.key];
    if (!map || event.ctrlKey || event.metaKey || event.altKey) return;
    if (this.selected?.view.mapOf(this.selected.channel) !== map) this.enter(map);
    if (event.key === "Escape") {
      this.held = false;
      this.select(null);
    } else if (event.key === "Enter") byId("panel").focus();
    else if (event.key === "x") this.toggle();
    else if (step && this.selected) this.step(...step, event.shiftKey);
    else return;
    event.preventDefault();
  }

  step(down, right, toChannel) {
    const { view, channel, y, x } = this.selected;
    if (view.isStrip) {
      const next = channel + down * view.width + right;
      this.select({ view, channel: within(next, view.channels) === next ? next : channel, y, x });
    } else if (toChannel) {
      const next = view.mapOf(within(channel + down + right, view.canvases.length));
      this.select({ view, channel: next.place.channel, y, x });
      next.focus();
    } else this.select({ view, channel, y: within(y + down, view.height), x: within(x + right, view.width) });
  }

  isSelected(place) {
    return ["view", "channel", "y", "x"].every((key) => this.selected?.[key] === place[key]);
  }

  select(selected) {
    const last = this.selected;
    if (selected && this.isSelected(selected) && this.held === this.wasHeld) return;
    this.wasHeld = this.held;
    const before = last?.view.mapOf(last.channel), map = selected?.view.mapOf(selected.channel);
    before?.classList.remove("held");
    map?.classList.toggle("held", !!this.held);
    if (map && map !== before) {
      // The first map of a row grows to the right, the last one to the left, so that all of it stays in the page.
      const row = map.parentNode, room = row.clientWidth - map.offsetWidth;
      map.style.transformOrigin = `${room > 0 ? (100 * (map.offsetLeft - row.offsetLeft)) / room : 0}% 50%`;
      for (const other of map.parentNode.querySelectorAll(".map")) other.tabIndex = other === map ? 0 : -1;
      map.append(this.button);
    }
    if (!map) this.button.remove();
    else if (this.held) map.scrollIntoView({ block: "nearest" });
    this.selected = selected;
    this.label();
    this.onSelect(selected);
  }

  /** Outline the selected value, and in the maps before it what it was computed from. */
  outline(patches) {
    for (const frame of document.querySelectorAll("#layers .frame:not(.dead), #eye .frame")) frame.remove();
    if (!this.selected) return;
    const { view, channel, y, x } = this.selected;
    view.frame(channel, y, x, 1, 1);
    for (const { from, channel: source, top, left, rows, columns, step } of patches) {
      const [height, width] = [(rows - 1) * step[0] + 1, (columns - 1) * step[1] + 1];
      if (from) this.views[from - 1].frame(source, top, left, height, width);
      else if (!source) byId("eye").append(frameOf(top, left, height, width, byId("feed").height, byId("feed").width));
    }
  }

  isOff() {
    return !!this.selected?.view.off?.has(this.selected.channel);
  }

  toggle() {
    if (this.selected) this.onToggle(this.selected.view.index, this.selected.channel);
  }

  label() {
    this.button.textContent = this.isOff() ? "Switch on" : "Switch off";
  }
}
