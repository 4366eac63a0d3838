"""How the page looks. Colours keep 4.5 : 1 on their ground for text and differ for every kind of colour vision."""

STYLE = """
:root {
  --ground: #f5f6f8; --card: #ffffff; --ink: #17202b; --soft: #566273; --line: #d8dee6;
  --clean: #0b62b8; --attack: #bf3f06; --robust: #0b7459; --other: #667180; --rating: #6b3fa0;
  --good: #0b7459; --bad: #bf3f06; --band: #6b3fa0; --on: #ffffff;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #0f141b; --card: #18202b; --ink: #e7ecf3; --soft: #a3afbf; --line: #2e3a49;
    --clean: #63b0fa; --attack: #ff9157; --robust: #45cfa6; --other: #8996a7; --rating: #c3a1f4;
    --good: #45cfa6; --bad: #ff9157; --band: #c3a1f4; --on: #10151c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 56px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 8px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 0 0 6px; }
h3 { font-size: 14px; font-weight: 600; margin: 0; color: var(--soft); }
abbr { text-decoration: none; font-weight: 400; float: right; }
.lead { font-size: 18px; margin: 0 0 6px; max-width: 62em; }
.note { color: var(--soft); font-size: 13px; margin: 4px 0; overflow-wrap: anywhere; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(225px, 1fr)); gap: 14px;
  margin: 22px 0 14px;
}
.card, .panel {
  background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px;
}
.card { border-top: 4px solid var(--hue); }
.panel { margin: 14px 0; }
.value { margin: 4px 0 0; }
.from { margin: 0 0 8px; font-size: 13px; color: var(--soft); }
.number { font-size: 34px; font-weight: 650; letter-spacing: -.02em; line-height: 1.15; }
.change { font-weight: 600; margin-left: 6px; }
.change.good { color: var(--good); } .change.bad { color: var(--bad); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { fill: var(--ink); font-size: 12px; }
svg .tick { fill: var(--soft); font-size: 11px; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
svg .strong { font-weight: 600; }
.wide { min-width: 700px; }
.axis, .grid { stroke: var(--line); stroke-width: 1; }
.clean { --hue: var(--clean); } .attack { --hue: var(--attack); } .robust { --hue: var(--robust); }
.other { --hue: var(--other); } .rating { --hue: var(--rating); }
.way { stroke: var(--hue); stroke-width: 2; opacity: .35; }
.ring { fill: var(--card); stroke: var(--hue); stroke-width: 1.75; }
.dot { fill: var(--hue); }
.interval { fill: var(--hue); opacity: .3; }
.fill { fill: var(--hue); }
svg .inside { fill: var(--on); font-weight: 600; font-size: 13px; }
.legend {
  display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; margin: 2px 0 10px;
  color: var(--soft);
}
.key {
  display: inline-block; width: 12px; height: 12px; border-radius: 3px; background: var(--hue);
  margin-right: 6px; vertical-align: -1px;
}
.key.ring-key { background: none; border: 2px solid var(--soft); border-radius: 50%; }
.key.dot-key { background: var(--soft); border-radius: 50%; }
.key.line-key { height: 3px; border-radius: 2px; width: 16px; vertical-align: 3px; }
.key.band { background: var(--band); opacity: .45; }
.area { fill: var(--hue); opacity: .5; }
.curve { fill: none; stroke: var(--hue); stroke-width: 1.5; stroke-linejoin: round; }
rect.band { fill: var(--band); opacity: .16; }
.bound { stroke: var(--band); stroke-width: 1.5; }
.sites {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 18px 26px;
  margin-top: 12px;
}
.examples {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); gap: 16px;
  margin-top: 10px;
}
figure { margin: 0; min-width: 0; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 6px; }
.pair img {
  width: 100%; aspect-ratio: 1; object-fit: contain; image-rendering: pixelated; border-radius: 6px;
  background: var(--ground);
}
figcaption { font-size: 13px; overflow-wrap: anywhere; }
.verdicts { width: 100%; border-collapse: collapse; table-layout: fixed; font-size: 12.5px; }
.verdicts th, .verdicts td { vertical-align: top; }
.verdicts th { width: 3.8em; font-weight: 400; color: var(--soft); text-align: left; padding: 0; }
.verdict { color: var(--hue); padding: 1px 2px; font-weight: 600; text-align: left; }
.verdict.other { color: var(--soft); }
details { margin-top: 10px; } summary { cursor: pointer; font-size: 13px; color: var(--soft); }
.scroll { overflow-x: auto; }
.scroll table { border-collapse: collapse; font-size: 13px; margin-top: 8px; }
.scroll th, .scroll td {
  padding: 3px 14px 3px 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap;
}
.scroll th:first-child { text-align: left; }
dl {
  display: grid; grid-template-columns: repeat(auto-fill, minmax(320px, 1fr)); gap: 2px 30px;
  margin: 8px 0 0; font-size: 13.5px;
}
dl div { display: flex; gap: 12px; border-bottom: 1px solid var(--line); padding: 4px 0; }
dt { color: var(--soft); flex: 0 0 8.5em; } dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
code { font: 13px ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
@media print { body { background: none; } .card, .panel { break-inside: avoid; } }
"""
