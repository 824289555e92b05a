"""The script of the report pages: charts, pictures by step, sortable columns, a page that reloads itself.

It is embedded in the page, which loads no external resources. Without it a chart is still there, drawn by
reports/charts.py. The script draws the chart again from the numbers beside it, at its width on the screen, so that the
text keeps its size. At the pointer, all curves show their value at one step: a line is interpolated between its points;
separate points show the last one, with its own step if that differs.
"""

SCRIPT = r"""
const NS = 'http://www.w3.org/2000/svg';
const number = value => {
  if (value === 0) return '0';
  const size = Math.abs(value);
  if (size < 1e-3) return value.toExponential(3).replace(/\.?0+e/, 'e').replace('e+', 'e');
  if (size >= 1000) return Math.round(value).toLocaleString('en-US');
  return String(+value.toPrecision(4));
};
const short = step => Math.abs(step) >= 1e6 ? +(step / 1e6).toPrecision(4) + 'M'
  : Math.abs(step) >= 1e4 ? +(step / 1e3).toPrecision(4) + 'k'
  : step === Math.round(step) ? step.toLocaleString('en-US') : String(+step.toPrecision(6));
const roundTicks = (low, high, about) => {
  const raw = (high - low) / about, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(m => m >= raw * 0.999), found = [];
  const last = Math.floor(high / step + 1e-9);
  for (let k = Math.ceil(low / step - 1e-9); k <= last; k++) found.push(+(k * step).toPrecision(12));
  return found;
};
const logTicks = (low, high) => {
  let found = [];
  for (const multiples of [[1], [1, 3], [1, 2, 5]]) {
    found = [];
    for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
      for (const m of multiples) { const v = m * 10 ** e; if (v >= low && v <= high) found.push(+v.toPrecision(12)); }
    if (found.length >= 4) break;
  }
  if (found.length < 3) found = roundTicks(low, high, 5);
  return found.filter((_, i) => i % Math.ceil(found.length / 7) === 0);
};
const scale = (low, high, start, end, log) => {
  const f = log ? v => Math.log(Math.max(v, 1e-300)) : v => v, a = f(low), b = f(high);
  const to = v => start + (f(v) - a) / (b - a) * (end - start);
  to.back = p => { const v = a + (p - start) / (end - start) * (b - a); return log ? Math.exp(v) : v; };
  return to;
};
class Chart {
  constructor(figure, number) {
    this.figure = figure; this.id = 'clip-s' + number;
    this.data = JSON.parse(figure.querySelector('script').textContent);
    this.svg = figure.querySelector('svg');
    this.range = null; this.log = this.data.log;
    this.tip = figure.appendChild(Object.assign(document.createElement('div'), { className: 'tip' }));
    this.tools();
    this.svg.addEventListener('pointermove', event => this.move(event));
    this.svg.addEventListener('pointerleave', () => this.leave());
    this.svg.addEventListener('pointerdown', event => { this.from = this.at(event); });
    this.svg.addEventListener('pointerup', event => this.release(event));
    this.svg.addEventListener('dblclick', () => this.zoom(null));
    new ResizeObserver(() => this.draw()).observe(figure);
  }
  tools() {
    const bar = document.createElement('span'), make = (text, title, act) => {
      const button = Object.assign(document.createElement('button'), { type: 'button', textContent: text, title });
      button.addEventListener('click', act);
      return bar.appendChild(button);
    };
    bar.className = 'tools';
    this.whole = make('whole', 'show all steps again', () => this.zoom(null));
    this.toggle = make('log', 'logarithmic scale on or off', () => { this.log = !this.log; this.draw(); });
    this.toggle.hidden = !this.data.series.some(s => s.y.some(v => v > 0));
    this.figure.querySelector('figcaption').appendChild(bar);
    const said = this.figure.querySelector('.scale');
    if (said) said.remove();
  }
  at(event) { return event.clientX - this.svg.getBoundingClientRect().left; }
  zoom(range) { this.range = range; this.leave(); this.draw(); }
  release(event) {
    const from = this.from, to = this.at(event);
    this.from = null;
    if (from == null || Math.abs(to - from) < 8) return;
    const ends = [this.x.back(Math.min(from, to)), this.x.back(Math.max(from, to))];
    this.zoom([Math.max(ends[0], this.x.low), Math.min(ends[1], this.x.high)]);
  }
  limits() {
    const [low, high] = this.range || this.data.x;
    if (!this.range && this.log === this.data.log) return [low, high, ...this.data.y];
    const seen = [];
    for (const s of this.data.series) s.x.forEach((step, i) => {
      if (step < low || step > high) return;
      const e = s.errors ? s.errors[i] : 0;
      for (const v of [s.y[i] - e, s.y[i] + e]) if (!this.log || v > 0) seen.push(v);
    });
    if (!seen.length) return [low, high, ...this.data.y.map((v, i) => this.log && v <= 0 ? 10 ** (i - 1) : v)];
    let bottom = Math.min(...seen), top = Math.max(...seen);
    if (this.log) {
      const times = top > bottom ? (top / bottom) ** 0.05 : 2;
      return [low, high, bottom / times, top * times];
    }
    const room = 0.06 * (top - bottom) || Math.abs(bottom) * 0.1 || 1;
    return [low, high, bottom - room, top + room];
  }
  draw() {
    const width = Math.round(this.figure.clientWidth), height = this.data.height, left = 48, mark = 6;
    if (!width) return;
    const [low, high, bottom, top] = this.limits(), xLog = this.data.logX;
    const x = this.x = scale(low, high, left, width - 14, xLog);
    const y = this.y = scale(bottom, top, height - 30, 10, this.log);
    Object.assign(x, { low, high });
    this.svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    const make = (tag, attributes, into = this.svg, text) => {
      const node = document.createElementNS(NS, tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      if (text !== undefined) node.textContent = text;
      return into.appendChild(node);
    };
    this.make = make;
    make('rect', { x: left - mark, y: 10 - mark, width: width - 14 - left + 2 * mark, height: height - 40 + 2 * mark },
      make('clipPath', { id: this.id }));
    for (const value of this.log ? logTicks(bottom, top) : roundTicks(bottom, top, 5)) {
      make('line', { class: 'grid', x1: left, x2: width - 14, y1: y(value), y2: y(value) });
      make('text', { x: left - 8, y: y(value) + 3.5, 'text-anchor': 'end' }, this.svg, number(value));
    }
    this.below(x, low, high, width, height);
    make('line', { class: 'axis', x1: left, x2: width - 14, y1: height - 30, y2: height - 30 });
    const layer = make('g', { 'clip-path': `url(#${this.id})` });
    for (const s of this.data.series) this.curve(s, x, y, bottom, top, layer);
    this.layer = make('g', { class: 'hover' });
    this.whole.hidden = !this.range;
    this.toggle.setAttribute('aria-pressed', this.log);
  }
  below(x, low, high, width, height) {
    const named = this.data.places.map((text, i) => [i, text]);
    let ticks = named;
    if (!named.length && this.data.logX) {
      ticks = [];
      const last = Math.floor(Math.log2(high));
      for (let n = Math.ceil(Math.log2(low)); n <= last; n++) ticks.push([2 ** n, short(2 ** n)]);
    }
    if (!ticks.length) ticks = roundTicks(low, high, width > 600 ? 8 : 4).map(v => [v, short(v)]);
    const room = named.length ? (width - 62) / named.length / 7 : Infinity;
    for (const [value, text] of ticks) if (value >= low && value <= high) {
      const anchor = x(value) > width - 26 ? 'end' : 'middle';
      const node = this.make('text', { x: x(value), y: height - 10, 'text-anchor': anchor }, this.svg,
        text.length > room ? text.slice(0, Math.max(room - 1, 1)) + '…' : text);
      if (named.length) this.make('title', {}, node, text);
    }
  }
  curve(s, x, y, bottom, top, layer) {
    const color = 's' + s.color, path = (xs, ys) => {
      const points = xs.map((v, i) => [v, ys[i]]).filter(([, v]) => !this.log || v > 0);
      return points.length ? 'M' + points.map(([a, b]) => x(a).toFixed(1) + ',' + y(b).toFixed(1)).join('L') : 'M0,0';
    };
    if (s.rawX) this.make('path', { class: 'raw ' + color, d: path(s.rawX, s.rawY) }, layer);
    if (s.errors) s.x.forEach((v, i) => {
      if (!(s.errors[i] > 0) || (this.log && s.y[i] <= 0)) return;
      const ends = [Math.max(s.y[i] - s.errors[i], bottom), Math.min(s.y[i] + s.errors[i], top)];
      this.make('path', { class: 'bar ' + color, d: `M${x(v)},${y(ends[0])}V${y(ends[1])}` }, layer);
    });
    if (s.joined) this.make('path', { class: 'line ' + color + (s.dashed ? ' dashed' : ''), d: path(s.x, s.y) }, layer);
    if (s.dots) s.x.forEach((v, i) => (!this.log || s.y[i] > 0)
      && this.make('circle', { class: 'dot ' + color, cx: x(v), cy: y(s.y[i]), r: 2.6 }, layer));
  }
  leave() { this.from = null; if (this.layer) this.layer.replaceChildren(); this.tip.style.display = 'none'; }
  read(s, step) {
    let i = -1;
    while (i + 1 < s.x.length && s.x[i + 1] <= step) i++;
    if (i < 0) return null;
    if (s.x[i] === step) return { step, value: s.y[i], error: s.errors && s.errors[i] };
    if (s.dots || !s.joined) return { step: s.x[i], value: s.y[i], error: s.errors && s.errors[i] };
    if (i + 1 >= s.x.length) return null;
    const part = (step - s.x[i]) / (s.x[i + 1] - s.x[i]);
    return { step, value: s.y[i] + part * (s.y[i + 1] - s.y[i]) };
  }
  move(event) {
    if (!this.layer) return;
    const px = this.at(event), [low, high] = [this.x.low, this.x.high], { make, layer } = this;
    layer.replaceChildren(); this.tip.replaceChildren();
    if (this.from != null && Math.abs(px - this.from) >= 8)
      make('rect', { class: 'zoom', x: Math.min(px, this.from), width: Math.abs(px - this.from), y: 10,
        height: this.data.height - 40 }, layer);
    let step = null;
    for (const s of this.data.series) for (const v of s.x)
      if (v >= low && v <= high && (step === null || Math.abs(this.x(v) - px) < Math.abs(this.x(step) - px))) step = v;
    if (step === null) return;
    const at = this.x(step), name = this.data.places[Math.round(step)];
    make('line', { x1: at, x2: at, y1: 10, y2: this.data.height - 30 }, layer);
    const lines = [name !== undefined ? name : this.data.axis + ' ' + short(step)];
    for (const s of this.data.series) {
      const found = this.read(s, step);
      if (!found || (this.log && found.value <= 0)) continue;
      if (name !== undefined && Math.round(found.step) !== Math.round(step)) continue;
      if (found.step >= low)
        make('circle', { cx: this.x(found.step), cy: this.y(found.value), r: 4, class: 's' + s.color }, layer);
      const own = name === undefined && found.step !== step ? ` (${this.data.axis} ${short(found.step)})` : '';
      const error = found.error > 0 ? ' ± ' + number(+found.error.toPrecision(2)) : '';
      lines.push((this.data.series.length > 1 ? s.name + '  ' : '') + number(found.value) + error + own);
    }
    for (const text of lines) this.tip.appendChild(document.createElement('div')).textContent = text;
    this.tip.style.display = 'block';
    const wide = this.tip.offsetWidth, whole = this.figure.clientWidth;
    this.tip.style.left = Math.max(0, at + wide + 16 > whole ? at - wide - 12 : at + 12) + 'px';
    this.tip.style.top = (this.svg.getBoundingClientRect().top - this.figure.getBoundingClientRect().top + 12) + 'px';
  }
}
const charts = [...document.querySelectorAll('figure.chart')].map((figure, i) => new Chart(figure, i));
if (document.body.dataset.refresh) setInterval(() => {
  if (!document.hidden && !charts.some(chart => chart.range)) location.reload();
}, 1000 * document.body.dataset.refresh);
for (const when of document.querySelectorAll('time[data-written]')) {
  const say = () => {
    const seconds = Math.max(0, Math.round(Date.now() / 1000 - when.dataset.written));
    const ago = seconds < 90 ? seconds + ' s' : seconds < 5400 ? Math.round(seconds / 60) + ' min'
      : Math.round(seconds / 3600) + ' h';
    when.textContent = 'Written ' + ago + ' ago' + (seconds < 180 ? '.' : ': the run may have ended meanwhile.');
  };
  say(); setInterval(say, 1000);
}
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.querySelectorAll('thead th')], body = table.tBodies[0], first = [...body.rows];
  const key = (row, k) => {
    const cell = row.cells[k], value = cell.dataset.sort !== undefined ? cell.dataset.sort : cell.textContent.trim();
    const parsed = parseFloat(String(value).replace(/,/g, '').replace('−', '-'));
    return Number.isNaN(parsed) ? String(value) : parsed;
  };
  heads.forEach((head, k) => head.querySelector('button')?.addEventListener('click', () => {
    const turns = { none: 'ascending', ascending: 'descending', descending: '' };
    const next = turns[head.getAttribute('aria-sort') || 'none'];
    heads.forEach(one => one.removeAttribute('aria-sort'));
    if (next) head.setAttribute('aria-sort', next);
    const sign = next === 'descending' ? -1 : 1, known = v => typeof v === 'number';
    const rows = !next ? first : [...first].sort((a, b) => {
      const [u, v] = [key(a, k), key(b, k)];
      if (known(u) !== known(v)) return known(u) ? -1 : 1;
      return sign * (known(u) ? u - v : u.localeCompare(v));
    });
    body.append(...rows);
  }));
}
for (const gallery of document.querySelectorAll('.gallery')) {
  const buttons = [...gallery.querySelectorAll('.strip button')];
  if (!buttons.length) continue;
  const big = gallery.querySelector('.stage img'), slider = gallery.querySelector('.player input');
  const show = index => {
    buttons.forEach((button, k) => button.setAttribute('aria-pressed', k === index));
    big.src = buttons[index].querySelector('img').src;
    gallery.querySelector('output').textContent = buttons[index].title;
    slider.value = index;
    const strip = buttons[index].parentElement, button = buttons[index];
    strip.scrollLeft = button.offsetLeft - strip.offsetLeft - (strip.clientWidth - button.offsetWidth) / 2;
  };
  buttons.forEach((button, k) => button.addEventListener('click', () => show(k)));
  slider.addEventListener('input', () => show(+slider.value));
  gallery.querySelector('.stage').hidden = false;
  show(buttons.length - 1);
  addEventListener('load', () => show(buttons.length - 1));
}
for (const button of document.querySelectorAll('.command button')) {
  button.addEventListener('click', async () => {
    const code = button.parentElement.querySelector('code');
    try { await navigator.clipboard.writeText(code.textContent); button.textContent = 'Copied'; }
    catch { getSelection().selectAllChildren(code); button.textContent = 'Selected'; }
    setTimeout(() => { button.textContent = 'Copy'; }, 1500);
  });
}
"""
