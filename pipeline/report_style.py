"""The looks of the report: one style sheet, light and dark by the reader's setting."""

STYLE = """
:root {
  color-scheme: light dark;
  --page: #fbfaf8; --card: #ffffff; --ink: #1d2126; --soft: #626b75;
  --line: #dfe2e6; --mark: #2f6f8f; --wash: #e3edf2; --warn: #a2541b;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1c2024; --ink: #e6e8ea; --soft: #98a2ac;
    --line: #31373d; --mark: #6db3d2; --wash: #22333c; --warn: #e39a63;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1120px; padding: 32px 24px 64px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Helvetica, Arial, sans-serif;
}
h1 { font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 44px 0 12px; }
.soft { color: var(--soft); }
.warn { color: var(--warn); }
td.number { font-variant-numeric: tabular-nums; }
code, .code { font: 12px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; }
.tile, figure, article, .scroll {
  background: var(--card); border: 1px solid var(--line); border-radius: 8px;
}
.tile { padding: 12px 14px; }
.tile b { display: block; font-size: 22px; font-weight: 600; line-height: 1.3; }
.tile span { color: var(--soft); font-size: 13px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 7px 12px; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; white-space: nowrap; }
th.number, td.number { text-align: right; white-space: nowrap; }
td:first-child { min-width: 190px; }
tfoot td { font-weight: 600; }
.bar { display: inline-block; height: 9px; border-radius: 0 3px 3px 0; background: var(--mark); }
svg { display: block; width: 100%; height: auto; }
svg rect { fill: var(--mark); }
svg line { stroke: var(--line); }
svg text { fill: var(--soft); font: 16px system-ui, sans-serif; }
figure { margin: 0; padding: 14px; }
figcaption { color: var(--soft); font-size: 13px; margin-bottom: 8px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(300px, 1fr)); gap: 12px; }
.tiles { margin: 16px 0 12px; }
article { padding: 16px 18px; margin-bottom: 14px; }
article header { display: flex; gap: 6px 14px; flex-wrap: wrap; align-items: baseline; margin-bottom: 10px; }
article header b { overflow-wrap: anywhere; }
.segment { margin: 12px 0; }
.segment p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 78ch; }
.role { font-size: 12px; color: var(--mark); font-weight: 600; margin-right: 8px; }
.images { display: flex; flex-wrap: wrap; gap: 14px 16px; align-items: flex-end; }
.image { width: 248px; }
.image img, .nothing {
  border-radius: 4px; display: block; border: 1px solid var(--line); margin-bottom: 6px;
}
.nothing {
  width: 132px; height: 84px; display: grid; place-items: center; color: var(--soft); font-size: 12px;
  border-style: dashed;
}
.codes { display: grid; grid-template-columns: repeat(8, 1fr); gap: 2px; }
.codes span {
  text-align: right; padding: 0 3px; background: var(--wash); border-radius: 2px;
  font: 10px/1.6 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
}
details summary { cursor: pointer; color: var(--soft); font-size: 13px; margin-top: 6px; }
details p { margin: 6px 0 0; }
"""
