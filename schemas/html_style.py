"""The looks of the reports: one style sheet, light and dark by the reader's setting.

``--s0`` to ``--s7`` are the colours of series: Okabe and Ito's, told apart by colour-blind readers, made
darker on white and lighter on black until each has a contrast of 3 against its ground.
"""

NUM_SERIES_COLOURS = 8

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f8f9; --card: #ffffff; --ink: #1b2127; --soft: #59636e;
  --line: #dce0e5; --grid: #e8ebee; --mark: #0067a5; --wash: #eaf1f6; --warn: #9a4a00;
  --s0: #0067a5; --s1: #c24e00; --s2: #00805c; --s3: #a8457f;
  --s4: #8a6d00; --s5: #1f86c2; --s6: #59636e; --s7: #7b3fb0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #12161a; --card: #1a2026; --ink: #e7eaed; --soft: #9da8b3;
    --line: #303840; --grid: #262d34; --mark: #6cb8ea; --wash: #22303b; --warn: #f0a868;
    --s0: #6cb8ea; --s1: #f08a4b; --s2: #3cc79b; --s3: #e39ac5;
    --s4: #e3c04a; --s5: #4a90d9; --s6: #9da8b3; --s7: #b99be8;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", Helvetica, Arial, sans-serif;
}
main { max-width: 1160px; margin: 0 auto; padding: 36px 28px 72px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 18px; line-height: 1.3; margin: 44px 0 14px; }
header.page p { margin: 4px 0 20px; }
p { max-width: 84ch; }
.soft, .note { color: var(--soft); }
.note { font-size: 13.5px; margin: -6px 0 12px; }
.warn { color: var(--warn); font-weight: 600; }
code, .code { font: 12.5px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
code, .code { overflow-wrap: anywhere; }
pre.code { white-space: pre-wrap; margin: 8px 0 0; }
:focus-visible { outline: 2px solid var(--mark); outline-offset: 2px; border-radius: 4px; }

.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 0 0 14px; }
.tile, figure, article, .scroll, main > table {
  background: var(--card); border: 1px solid var(--line); border-radius: 10px;
}
.tile { padding: 12px 16px; display: flex; flex-direction: column; }
.tile dd {
  margin: 0; font-size: 23px; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums;
}
.tile dt { color: var(--soft); font-size: 13.5px; }

.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
main > table {
  display: block; width: max-content; max-width: 100%; overflow-x: auto; margin: 14px 0;
  border-collapse: separate; border-spacing: 0;
}
th, td { text-align: left; padding: 8px 14px; border-top: 1px solid var(--grid); vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
thead th, main > table tr:first-child > * { border-top: 0; }
td { font-variant-numeric: tabular-nums; }
.number, main > table td:not(:first-child), main > table th:not(:first-child) {
  text-align: right; white-space: nowrap;
}
tfoot td { font-weight: 600; border-top: 1px solid var(--line); }
td .bar { display: inline-block; height: 10px; border-radius: 0 3px 3px 0; background: var(--mark); }

.charts { --least: 330px; display: grid; gap: 14px; }
.charts { grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--least)), 1fr)); }
.charts.two { --least: 440px; }
figure { margin: 0; padding: 16px 18px 12px; min-width: 0; }
main > figure { margin-bottom: 14px; }
figcaption { font-size: 14.5px; font-weight: 600; line-height: 1.4; }
.legend {
  list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 4px 0 0; padding: 0;
  font-size: 13px; color: var(--soft);
}
.legend b { font-weight: 600; color: var(--ink); font-variant-numeric: tabular-nums; }
.legend svg { display: inline-block; width: 22px; height: 10px; margin-right: 6px; }
svg { display: block; width: 100%; height: auto; margin-top: 6px; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
.charts:not(.two) svg text { font-size: 18px; }
svg text.name { fill: var(--ink); }
svg .grid { stroke: var(--grid); }
svg .axis { stroke: var(--line); fill: none; }
svg polyline, svg .stroke { fill: none; stroke-width: 2; stroke-linejoin: round; }
svg .faint { opacity: .5; stroke-width: 1; }
svg .dashed { stroke-dasharray: 6 4; }
svg .mark { stroke: var(--ink); stroke-width: 2; }
.at > * { visibility: hidden; }
.at > .reach { visibility: visible; fill: none; pointer-events: all; }
.at:hover > * { visibility: visible; }
.at .box { fill: var(--card); stroke: var(--line); }
.charts .at text { fill: var(--ink); font-size: 15px; }

.gallery { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 14px; }
article { padding: 16px 18px; min-width: 0; }
article.long { grid-column: 1 / -1; }
article > header { display: flex; gap: 2px 12px; flex-wrap: wrap; align-items: baseline; }
article > header { margin-bottom: 10px; }
article > header b { overflow-wrap: anywhere; }
article > header span { font-size: 13px; }
.segment { margin: 12px 0; }
.segment p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 80ch; }
.role {
  font-size: 12px; color: var(--mark); background: var(--wash); font-weight: 600; margin-right: 8px;
  padding: 1px 7px; border-radius: 9px;
}
.images { display: flex; flex-wrap: wrap; gap: 14px 16px; align-items: flex-end; }
.image { width: 252px; max-width: 100%; }
.image img, .nothing { display: block; border: 1px solid var(--line); border-radius: 6px; }
.image img, .nothing { margin-bottom: 6px; }
.image:only-child { width: auto; display: flex; flex-wrap: wrap; gap: 8px 14px; }
.image:only-child { align-items: flex-start; }
.image:only-child img { margin: 0; }
.image:only-child .codes { width: 252px; }
.nothing {
  width: 132px; height: 84px; display: grid; place-items: center; color: var(--soft); font-size: 13px;
  border-style: dashed;
}
.codes { display: grid; grid-template-columns: repeat(8, 1fr); gap: 2px; }
.codes span {
  text-align: right; padding: 0 3px; background: var(--wash); border-radius: 3px;
  font: 10.5px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
}
details { margin-top: 8px; }
summary { cursor: pointer; color: var(--soft); font-size: 13.5px; width: fit-content; }
summary:hover { color: var(--ink); }
details p { margin: 6px 0 0; }
details .scroll { margin-top: 8px; max-height: 340px; overflow: auto; border-radius: 6px; }
details th { position: sticky; top: 0; background: var(--card); }

@media (max-width: 760px) {
  main { padding: 22px 16px 48px; }
  h1 { font-size: 23px; }
  .tiles, .gallery { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .gallery { grid-template-columns: minmax(0, 1fr); }
  .tile dd { font-size: 20px; }
  th, td { padding: 7px 10px; }
  svg text, .charts:not(.two) svg text { font-size: 19px; }
}
@media print { figure, article, .tile { break-inside: avoid; } }
"""
