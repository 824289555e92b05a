"""The style sheet of the report pages, embedded in the page, which loads no external resources."""

STYLE = """
:root { color-scheme: light dark;
  --page: #fcfcfb; --panel: #f3f3f1; --ink: #1b1c1e; --soft: #66686d; --rule: #dddcd8; --grid: #e9e8e5;
  --s0: #1f5fa8; --s1: #c2571a; --s2: #3f7f4f; --s3: #8a4d8f;
  --s4: #a1842a; --s5: #2f8c8c; --s6: #b0426b; --s7: #6b6f76; --warn: #9a3412; --warn-page: #fdf1e7; }
@media (prefers-color-scheme: dark) { :root {
  --page: #141517; --panel: #1c1e21; --ink: #e6e5e1; --soft: #9a9b9f; --rule: #313338; --grid: #26282c;
  --s0: #7fb2ea; --s1: #eb9a60; --s2: #86c294; --s3: #cf9ad3;
  --s4: #d8bd6a; --s5: #6cc7c7; --s6: #ea8fb0; --s7: #a9adb4; --warn: #f0b488; --warn-page: #2c211a; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); -webkit-font-smoothing: antialiased;
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 52px 40px 96px; }
code, pre, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: 12.5px; }
header .over { color: var(--soft); font-size: 13px; margin: 0; }
h1 { font-size: 34px; line-height: 1.15; font-weight: 650; letter-spacing: -0.02em; margin: 4px 0 8px;
  overflow-wrap: anywhere; }
header .lead { font-size: 16.5px; color: var(--soft); margin: 0; max-width: 78ch; }
nav { margin: 20px 0 0; display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13.5px; }
nav a { color: var(--s0); text-decoration: none; }
nav a:hover { text-decoration: underline; text-underline-offset: 3px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); margin: 30px 0 0;
  border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); }
.card { padding: 15px 18px 16px; border-left: 1px solid var(--rule); }
.card:first-child { border-left: 0; padding-left: 0; }
.card .label { font-size: 13px; color: var(--soft); }
.card .value { font-size: 27px; line-height: 1.25; font-weight: 600; letter-spacing: -0.02em; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.card .value small { font-size: 15px; font-weight: 500; color: var(--soft); letter-spacing: 0; white-space: nowrap; }
.card .note { font-size: 12.5px; line-height: 1.4; color: var(--soft); font-variant-numeric: tabular-nums; }
section { margin-top: 54px; scroll-margin-top: 20px; }
h2 { font-size: 20px; font-weight: 640; letter-spacing: -0.012em; margin: 0 0 4px; }
h3 { font-size: 15px; font-weight: 620; margin: 0 0 2px; }
p { margin: 0 0 14px; max-width: 74ch; }
p.about { color: var(--soft); font-size: 14px; }
.problem { background: var(--warn-page); color: var(--warn); padding: 10px 14px; border-radius: 6px; margin: 20px 0 0;
  font-size: 14px; max-width: none; }
.status { background: var(--panel); padding: 10px 14px; border-radius: 6px; margin: 20px 0 0; font-size: 14px;
  max-width: none; }
figure { margin: 16px 0 0; }
figure.chart { position: relative; }
figure.chart figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 2px 16px; font-size: 13.5px;
  padding-bottom: 4px; }
figure.chart figcaption strong { font-weight: 600; }
figure.chart svg { touch-action: pan-y; user-select: none; -webkit-user-select: none; }
.tools { display: inline-flex; gap: 6px; }
.tools button { border: 1px solid var(--rule); background: none; color: var(--soft); border-radius: 5px; padding: 0 8px;
  font: inherit; font-size: 12px; cursor: pointer; }
.tools button:hover { color: var(--ink); }
.tools button[aria-pressed=true] { background: var(--panel); color: var(--ink); border-color: var(--soft); }
.legend { font-variant-numeric: tabular-nums; }
.legend:first-of-type { margin-left: auto; }
.unit { color: var(--soft); font-size: 12.5px; }
.key { display: inline-block; width: 14px; height: 3px; border-radius: 2px; vertical-align: middle;
  margin: 0 6px 2px 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--soft); font-size: 11.5px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--rule); }
svg path { fill: none; stroke-linejoin: round; stroke-linecap: round; }
svg .line { stroke-width: 1.9; } svg .raw { stroke-width: 1; opacity: .28; }
svg .s0 { stroke: var(--s0); } svg .s1 { stroke: var(--s1); } svg .s2 { stroke: var(--s2); }
svg .s3 { stroke: var(--s3); } svg .s4 { stroke: var(--s4); } svg .s5 { stroke: var(--s5); }
svg .s6 { stroke: var(--s6); } svg .s7 { stroke: var(--s7); }
.key.s0 { background: var(--s0); } .key.s1 { background: var(--s1); } .key.s2 { background: var(--s2); }
.key.s3 { background: var(--s3); } .key.s4 { background: var(--s4); } .key.s5 { background: var(--s5); }
.key.s6 { background: var(--s6); } .key.s7 { background: var(--s7); }
svg .bar { stroke-width: 1.3; opacity: .7; } svg .dashed { stroke-dasharray: 4 4; }
svg .zoom { fill: var(--s0); opacity: .12; }
svg .dot { fill: var(--page); stroke-width: 1.6; }
svg .hover line { stroke: var(--soft); stroke-dasharray: 2 3; }
svg .hover circle { stroke: var(--page); stroke-width: 1.5; }
svg .hover .s0 { fill: var(--s0); } svg .hover .s1 { fill: var(--s1); } svg .hover .s2 { fill: var(--s2); }
svg .hover .s3 { fill: var(--s3); } svg .hover .s4 { fill: var(--s4); } svg .hover .s5 { fill: var(--s5); }
svg .hover .s6 { fill: var(--s6); } svg .hover .s7 { fill: var(--s7); }
.tip { position: absolute; pointer-events: none; background: var(--ink); color: var(--page); border-radius: 5px;
  padding: 6px 10px; font-size: 12.5px; line-height: 1.5; white-space: nowrap; font-variant-numeric: tabular-nums;
  display: none; z-index: 2; }
.small-charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr)); gap: 18px 36px;
  margin-top: 14px; }
img { max-width: 100%; height: auto; display: block; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 24px 44px;
  margin-top: 12px; }
.samples .about { margin-bottom: 10px; }
.player { margin-top: 12px; }
.player { display: flex; align-items: center; gap: 14px; width: 100%; font-variant-numeric: tabular-nums;
  font-size: 14px; }
.player input { flex: 1; accent-color: var(--s0); margin: 0; max-width: 560px; }
.player input[max="0"] { display: none; }
.player output { min-width: 12ch; }
.strip { display: flex; gap: 10px; overflow-x: auto; padding: 4px 2px 10px; margin-top: 14px; }
.strip button { flex: none; border: 0; background: none; padding: 5px; border-radius: 6px; cursor: pointer;
  font: inherit; font-size: 12px; line-height: 1.3; font-variant-numeric: tabular-nums; color: var(--soft); }
.strip button:hover { background: var(--panel); }
.strip button[aria-pressed=true] { background: var(--panel); color: var(--ink);
  box-shadow: inset 0 0 0 1.5px var(--s0); }
.strip img { width: 78px; height: 78px; object-fit: cover; object-position: left top; margin-bottom: 4px; }
button:focus-visible, input:focus-visible, summary:focus-visible, a:focus-visible { outline: 2px solid var(--s0);
  outline-offset: 2px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 14px; width: 100%; }
th, td { text-align: left; padding: 6px 18px 6px 0; border-bottom: 1px solid var(--grid); vertical-align: top; }
thead th { color: var(--soft); font-weight: 500; font-size: 13px; border-bottom-color: var(--rule); }
tbody th { font-weight: 400; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th.number { text-align: right; }
td.between, th.between { text-align: left; color: var(--soft); }
td.range { width: 36%; min-width: 180px; padding-right: 0; }
table.narrow { max-width: 560px; }
table.narrow tr > .number:last-child { padding-right: 0; }
table.sortable th button { all: unset; cursor: pointer; }
table.sortable th button:hover { color: var(--ink); }
table.sortable th button:focus-visible { outline: 2px solid var(--s0); outline-offset: 2px; }
table.sortable th[aria-sort] button { color: var(--ink); }
table.sortable th[aria-sort=ascending] button::after { content: " ▲"; font-size: 9px; }
table.sortable th[aria-sort=descending] button::after { content: " ▼"; font-size: 9px; }
tbody td a { color: var(--s0); }
th.range { display: flex; justify-content: space-between; padding-right: 0; }
table tbody tr:last-child > * { border-bottom: 0; }
.interval { position: relative; height: 22px; }
.interval::before { content: ""; position: absolute; inset: 10.5px 0 auto; height: 1px; background: var(--rule); }
.interval i { position: absolute; top: 7.5px; height: 7px; border-radius: 4px; background: var(--s0); opacity: .35;
  min-width: 2px; }
.interval b { position: absolute; top: 4px; width: 3px; height: 14px; margin-left: -1.5px; border-radius: 2px;
  background: var(--s0); }
.settings { display: flex; flex-wrap: wrap; gap: 2px 20px; color: var(--soft); font-size: 14px; max-width: none;
  margin: 4px 0 0; }
.settings b { color: var(--ink); font-weight: 500; }
.metric { margin-top: 26px; }
.counts { margin: 14px 0 0; font-size: 13px; }
.classes { display: grid; grid-template-columns: repeat(auto-fit, minmax(56px, 1fr)); gap: 10px; margin-top: 16px; }
.classes div { font-size: 12.5px; color: var(--soft); font-variant-numeric: tabular-nums; }
.classes strong { color: var(--ink); font-weight: 550; float: right; }
.classes span { display: block; clear: both; height: 5px; border-radius: 3px; background: var(--grid); margin-top: 4px;
  overflow: hidden; }
.classes span i { display: block; height: 100%; background: var(--s0); }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 8px 44px; }
.pair td:last-child { text-align: right; overflow-wrap: anywhere; padding-right: 0;
  font-variant-numeric: tabular-nums; }
.pair th { white-space: nowrap; color: var(--soft); }
details { border-top: 1px solid var(--rule); border-bottom: 1px solid var(--rule); margin-top: 14px; }
summary { cursor: pointer; padding: 11px 0; font-size: 14.5px; }
summary .unit { margin-left: 8px; }
.config { columns: 2 400px; column-gap: 44px; padding: 4px 0 18px; }
.config div { break-inside: avoid; margin-bottom: 18px; }
.config td { overflow-wrap: anywhere; padding-right: 0; text-align: right; }
.config th { color: var(--soft); white-space: nowrap; }
.config th, .config td { padding-top: 3px; padding-bottom: 3px; }
.command { display: flex; align-items: flex-start; gap: 12px; background: var(--panel); border-radius: 6px;
  padding: 10px 10px 10px 14px; margin: 4px 0 16px; }
.command code { flex: 1; overflow-wrap: anywhere; line-height: 1.7; }
.command button { border: 1px solid var(--rule); background: var(--page); color: var(--soft); border-radius: 5px;
  padding: 2px 10px; font: inherit; font-size: 12.5px; cursor: pointer; min-width: 68px; }
.command button:hover { color: var(--ink); }
@media (max-width: 640px) { main { padding: 30px 18px 60px; } h1 { font-size: 27px; }
  .card { border-left: 0; padding: 11px 14px 11px 0; } .legend:first-of-type { margin-left: 0; }
  td.range, th.range { display: none; } }
@media print { nav, .player, .command button { display: none; } section { break-inside: avoid; } }
"""
