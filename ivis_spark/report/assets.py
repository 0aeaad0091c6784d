"""Style and script of the page. Nothing is loaded from elsewhere: the page's own policy forbids it."""

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
.bar { display: block; height: 6px; width: 7rem; background: #e3e8ed; border-radius: 3px; margin-top: .3rem; }
.bar i { display: block; height: 6px; background: var(--accent); border-radius: 3px; }
details summary { cursor: pointer; color: var(--accent); }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2rem;
  align-items: start; }
.columns th { min-width: 8rem; overflow-wrap: normal; }
@media (max-width: 640px) {
  main, header { padding-left: .75rem; padding-right: .75rem; }
  section { padding: .9rem; }
  .plot { height: 30rem; }
  .quality thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  .quality tr { display: block; border-top: 1px solid var(--line); padding: .6rem 0; }
  .quality th, .quality td { display: block; border: 0; padding: .1rem 0; }
}
@media print { body { background: #fff; } section { break-inside: avoid; } }
"""

SCRIPT = """
(function () {
  'use strict';
  var read = function (id) { return JSON.parse(document.getElementById(id).textContent); };
  var narrow = window.matchMedia('(max-width: 640px)').matches;
  var webgl = (function () {
    try { return !!document.createElement('canvas').getContext('webgl'); } catch (error) { return false; }
  })();
  var ink = { color: '#1b2530', family: 'system-ui, "DejaVu Sans", Arial, sans-serif' };
  var axis = function (title, plain) {
    return { title: { text: title }, zeroline: false, gridcolor: '#e8ecf0', showticklabels: !plain, automargin: true };
  };
  var config = { responsive: true, displaylogo: false, displayModeBar: !narrow,
    modeBarButtonsToRemove: ['select2d', 'lasso2d', 'autoScale2d'] };
  var draw = function (id, traces, layout) {
    layout.font = ink;
    layout.paper_bgcolor = layout.plot_bgcolor = '#ffffff';
    // A finger on the plot must scroll the page, not zoom.
    layout.dragmode = narrow ? false : 'pan';
    Plotly.newPlot(id, traces, layout, config);
  };
  var scatter = read('scatter-data');
  scatter.traces.forEach(function (trace) {
    trace.type = webgl ? 'scattergl' : 'scatter';
    trace.mode = 'markers';
  });
  if (narrow && scatter.legend) {
    // The legend stands below the plot and must not take its height.
    document.getElementById('scatter').style.height = 'calc(26rem + ' + 12 * scatter.traces.length + 'px)';
  }
  draw('scatter', scatter.traces, {
    margin: { l: 50, r: 10, t: narrow ? 10 : 40, b: 50 }, hovermode: 'closest', showlegend: scatter.legend,
    xaxis: axis(narrow ? '' : scatter.x), yaxis: axis(scatter.y, scatter.strip),
    legend: Object.assign({ itemsizing: 'constant' },
      narrow || scatter.scale ? { orientation: 'h', y: narrow ? -0.1 : -0.18 } : {})
  });
  var curves = read('loss-data');
  if (curves.length) {
    draw('loss', curves, {
      margin: { l: 60, r: 10, t: 40, b: 50 }, hovermode: 'x unified', showlegend: curves.length > 1,
      xaxis: Object.assign(axis('epoch'), { rangemode: 'tozero' }), yaxis: axis('loss'),
      legend: { orientation: 'h', y: 1.12 }
    });
  }
})();
"""
