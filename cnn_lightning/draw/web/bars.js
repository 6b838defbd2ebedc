"use strict";

const MOST_BARS = 12, FIRST = 10;

/**
 * The prediction: a bar for the calibrated probability of each class; of many classes, the ten most probable ones. The
 * line in the bars is the threshold, below which the prediction is unsure.
 */
class Bars {
  constructor({ classes, temperature, threshold }) {
    Object.assign(this, { classes, temperature, threshold });
    this.sorted = classes.length > MOST_BARS;
    const longest = Math.max(...classes.map((name) => name.length));
    byId("bars").className = longest > 12 ? "long" : longest > 3 ? "named" : "";
    this.rows = Array.from({ length: this.sorted ? FIRST : classes.length }, () => this.row());
    byId("bars").replaceChildren(...this.rows.map((row) => row.item));
    byId("bars").style.setProperty("--threshold", `${100 * threshold}%`);
    const limit = percent(threshold, threshold > 0.999 ? 3 : 1);
    byId("limit").textContent = threshold > 1 ? "every answer unsure" : `unsure below ${limit}`;
  }

  row() {
    const bar = make("i"), before = make("s", { hidden: true }), name = make("span");
    const share = make("span"), score = make("span", { title: "score (logit)" });
    const limits = { "aria-valuemin": 0, "aria-valuemax": 100 };
    const meter = make("div", { className: "bar", role: "meter", ...limits }, bar, before);
    const item = make("li", {}, name, meter, share, score);
    return { item, name, meter, bar, before, share, score };
  }

  /** Show no prediction, and why. */
  clear(reason) {
    this.rows.forEach((row, i) => {
      this.fill(row, this.classes[i], 0, null, null);
      row.item.className = "";
    });
    this.top = null;
    byId("verdict").textContent = reason;
    announce(reason);
  }

  /**
   * Show scores.
   * @param {Float32Array} scores One a class.
   * @param {?Float32Array} before Scores with all channels on, if some are off: marked in the bars.
   */
  show(scores, before) {
    const [shares, earlier] = [scores, before].map((each) => each && softmax(each, this.temperature));
    const order = [...shares.keys()], top = order.reduce((a, b) => (scores[b] > scores[a] ? b : a));
    if (this.sorted) order.sort((a, b) => scores[b] - scores[a]);
    this.rows.forEach((row, i) => {
      const k = order[i];
      this.fill(row, this.classes[k], shares[k], scores[k], earlier && earlier[k]);
      row.item.className = k === top ? "top" : "";
    });
    this.top = top;
    const name = this.classes[top], was = earlier && earlier.indexOf(Math.max(...earlier));
    const note = earlier && `all channels on: ${this.classes[was]}, ${percent(earlier[was])}`;
    const { share, unsure } = this.judge(shares[top]);
    byId("verdict").replaceChildren(
      make("b", { className: name.length > 6 ? "long" : "", title: name }, name),
      make("span", {}, share),
      make("small", {}, ...(unsure ? [make("em", {}, unsure), ", "] : []), note ?? `score ${show(scores[top])}`),
    );
    announce([name, share, unsure].filter(Boolean).join(", "));
  }

  /** Texts for the probability of the prediction, with as many digits as tell it from the threshold. */
  judge(share) {
    const { threshold } = this;
    if (share >= threshold) return { share: percent(share), unsure: "" };
    if (threshold > 1) return { share: percent(share), unsure: "unsure, as every answer" };
    let digits = 1;
    while (digits < 6 && percent(share, digits) === percent(threshold, digits)) digits++;
    return { share: percent(share, digits), unsure: `unsure: below ${percent(threshold, digits)}` };
  }

  fill({ name, meter, bar, before, share, score }, text, value, points, earlier) {
    name.textContent = name.title = text;
    meter.setAttribute("aria-label", text);
    meter.setAttribute("aria-valuenow", (100 * value).toFixed(1));
    meter.setAttribute("aria-valuetext", points === null ? "no prediction" : percent(value));
    bar.style.transform = `scaleX(${value})`;
    before.hidden = earlier === null || Math.abs(earlier - value) < 0.005;
    before.style.transform = `translateX(${100 * (earlier ?? 0) - 100}%)`;
    share.textContent = points === null ? "" : percent(value);
    score.textContent = points === null ? "" : points.toFixed(2).replace("-", MINUS);
  }
}
