"""Style of the page and its policy: nothing is loaded from elsewhere."""

from __future__ import annotations

# 'unsafe-eval': the WebGL layer of plotly compiles its drawing commands. No network source is allowed at all.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; "
    "img-src data: blob:; worker-src blob:"
)

STYLE = """
:root { --ink: #1b2530; --soft: #4a5765; --line: #d5dbe1; --paper: #ffffff; --wash: #f4f6f8; --accent: #1f5f9e; }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", Arial, sans-serif; }
main, header { max-width: 72rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 1.75rem; padding-bottom: .5rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 0 0 .75rem; }
p { margin: 0 0 .75rem; max-width: 85ch; }
.soft { color: var(--soft); }
section { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem 1.25rem;
  margin: 1rem 0; }
.notice { border: 2px solid #a33b00; background: #fff4ec; }
.notice h2 { color: #7a2b00; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; padding: 0;
  margin: 1rem 0; list-style: none; }
.cards li { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: .7rem .9rem; }
.cards b { display: block; font-size: 1.5rem; line-height: 1.25; font-variant-numeric: tabular-nums; }
.cards span { color: var(--soft); font-size: .9rem; }
.plot { width: 100%; height: 36rem; }
.plot.low { height: 20rem; }
.plot.middle { height: 26rem; }
.tools { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; margin: 0 0 .5rem; }
.tools label { min-width: 0; max-width: 100%; }
select, button { font: inherit; color: inherit; background: var(--paper); border: 1px solid #7d8894;
  border-radius: 6px; padding: .3rem .6rem; min-height: 2.5rem; max-width: 100%; }
select { max-width: 16rem; }
button { cursor: pointer; margin: 0 .25rem .25rem 0; }
button[aria-pressed="true"] { background: var(--accent); border-color: var(--accent); color: #fff; }
:focus-visible { outline: 3px solid #e76300; outline-offset: 1px; }
.explorer { display: grid; grid-template-columns: minmax(0, 1fr) 17rem; gap: 1rem; }
.stage { position: relative; min-width: 0; }
#tip { position: absolute; z-index: 5; pointer-events: none; max-width: 16rem; background: #1b2530; color: #fff;
  border-radius: 6px; padding: .35rem .6rem; font-size: .85rem; line-height: 1.35; overflow-wrap: anywhere; }
#tip div { white-space: pre-wrap; }
#layers { list-style: none; margin: 0; padding: 0; max-height: 31rem; overflow-y: auto; }
#layers li { display: grid; grid-template-columns: auto minmax(0, 1fr); gap: 0 .5rem; align-items: center; }
#layers label { display: flex; align-items: center; gap: .4rem; min-height: 2.5rem; }
#layers input { width: 1.15rem; height: 1.15rem; accent-color: var(--accent); margin: 0; }
#layers svg { width: 1rem; height: 1rem; flex: none; }
#layers button { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 .5rem; width: 100%; margin: 0;
  border-color: transparent; text-align: left; padding: .2rem .4rem; }
#layers button[aria-pressed="true"] { background: #dce8f5; border-color: var(--accent); color: inherit; }
#layers .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
#layers .count { color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; align-self: center; }
#layers .bar { grid-column: 1 / -1; width: 100%; margin: 0; }
#layers .hidden .name { text-decoration: line-through; }
[hidden] { display: none !important; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .5rem .75rem .5rem 0; border-top: 1px solid var(--line);
  overflow-wrap: anywhere; }
thead th { border-top: 0; color: var(--soft); font-weight: 600; font-size: .9rem; }
tbody th { font-weight: 600; }
.quality th { min-width: 9.5rem; }
caption { text-align: left; padding: .4rem 0; }
td.value { font-variant-numeric: tabular-nums; white-space: nowrap; min-width: 8rem; }
.bar { display: block; height: 6px; width: 7rem; background: #e3e8ed; border-radius: 3px; margin-top: .3rem;
  position: relative; }
.bar i { display: block; height: 6px; background: var(--accent); border-radius: 3px; }
.bar .interval { position: absolute; top: -3px; height: 12px; border: 2px solid var(--ink); background: none;
  border-width: 0 2px; }
details summary { cursor: pointer; color: var(--accent); }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2rem;
  align-items: start; }
.columns th { min-width: 8rem; overflow-wrap: normal; }
@media (max-width: 640px) {
  main, header { padding-left: .75rem; padding-right: .75rem; }
  section { padding: .9rem; }
  .plot { height: 26rem; }
  .explorer { grid-template-columns: minmax(0, 1fr); }
  #layers { max-height: none; }
  select, button { min-height: 2.75rem; }
  .quality thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  .quality tr { display: block; border-top: 1px solid var(--line); padding: .6rem 0; }
  .quality th, .quality td { display: block; border: 0; padding: .1rem 0; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""
