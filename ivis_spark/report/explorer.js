// The script of the page: it draws with plotly, and links the views by the rows that are selected. Texts of the data reach
// the page as text nodes only, so that none of them is read as HTML.
(async () => {
  'use strict';
  const byId = id => document.getElementById(id);
  const read = id => byId(id) ? JSON.parse(byId(id).textContent) : null;
  const unpack = (text, Type) => {
    const raw = atob(text), bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return new Type(bytes.buffer);
  };
  // plotly.js is packed: it is most of the page
  const packed = new Blob([unpack(byId('plotly').textContent, Uint8Array)]);
  const plotly = document.createElement('script');
  plotly.textContent = await new Response(packed.stream().pipeThrough(new DecompressionStream('gzip'))).text();
  document.head.append(plotly);
  const narrow = window.matchMedia('(max-width: 640px)').matches;
  // 'none', 'software' (a processor draws, slowly) or 'card'.
  const webgl = (() => {
    try {
      const context = document.createElement('canvas').getContext('webgl');
      if (!context) return 'none';
      const info = context.getExtension('WEBGL_debug_renderer_info');
      const name = info ? String(context.getParameter(info.UNMASKED_RENDERER_WEBGL)) : '';
      return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name) ? 'software' : 'card';
    } catch (error) { return 'none'; }
  })();
  const ink = { color: '#1b2530', family: 'system-ui, "DejaVu Sans", Arial, sans-serif' };
  const axis = (title, more) => Object.assign(
    { title: { text: title }, zeroline: false, gridcolor: '#e8ecf0', automargin: true }, more);
  const draw = (id, traces, layout, more) => Plotly.react(id, traces,
    Object.assign({ font: ink, paper_bgcolor: '#ffffff', plot_bgcolor: '#ffffff' }, layout),
    Object.assign({ responsive: true, displaylogo: false, displayModeBar: false }, more));

  // Without a graphics card WebGL takes .2 s a frame from about here on; without WebGL, vectors take seconds. The rows
  // are in random order, so that the first are a sample.
  const MOST_SLOW_ROWS = 50000, MOST_VECTOR_ROWS = 5000;
  const data = read('explorer-data');
  const allX = unpack(data.x, Float32Array), allY = unpack(data.y, Float32Array);
  const ids = unpack(data.ids, BigInt64Array);
  let n = Math.min(allX.length, { none: MOST_VECTOR_ROWS, software: MOST_SLOW_ROWS, card: Infinity }[webgl]);
  data.colourings.forEach(colouring => {
    colouring.codes = unpack(colouring.codes, Uint8Array);
    if (colouring.values) colouring.values = unpack(colouring.values, Float32Array);
  });
  const count = value => value.toLocaleString('en');
  if (n < allX.length) {
    byId('fallback').hidden = false;
    byId('fewer').textContent = 'This browser draws without a graphics card: the first ' + count(n) + ' of the ' +
      count(allX.length) + ' rows are drawn.';
    byId('draw-all').hidden = webgl === 'none';
    byId('draw-all').addEventListener('click', () => {
      n = allX.length;
      byId('fallback').hidden = true;
      choose(null);
      colourBy(Number(byId('colour-by').value));
    });
  }
  // A layer that was drawn whole after another would hide it where both are dense: many rows are drawn in turns.
  const MOST_TRACES = 80, MOST_TURNS = 8, LEAST_ROWS_IN_TURNS = 5000, MANY_ROWS = 50000;

  // What is shown: the colouring, its rows by layer, the pieces of layers in the order of drawing, which layers are
  // hidden, and the chosen rows (null: no choice).
  let colouring, rows, pieces, hidden, chosen = null, chosenLayer = null;

  const split = () => {
    const counts = new Uint32Array(colouring.layers.length), codes = colouring.codes;
    for (let i = 0; i < n; i++) counts[codes[i]]++;
    rows = Array.from(counts, count => new Uint32Array(count));
    counts.fill(0);
    for (let i = 0; i < n; i++) rows[codes[i]][counts[codes[i]]++] = i;
    const most = n < LEAST_ROWS_IN_TURNS ? 1 : Math.min(MOST_TURNS, Math.floor(MOST_TRACES / rows.length));
    const turns = Math.max(1, most);
    pieces = [];
    for (let turn = 0; turn < turns; turn++) {
      rows.forEach((all, layer) => {
        const at = share => Math.floor(all.length * share / turns);
        pieces.push({ layer, rows: all.subarray(at(turn), at(turn + 1)) });
      });
    }
  };
  const pick = (values, places) => {
    const out = new Float32Array(places.length);
    for (let i = 0; i < places.length; i++) out[i] = values[places[i]];
    return out;
  };
  const chosenPoints = piece => {
    if (!chosen) return null;
    const found = [];
    piece.rows.forEach((row, place) => { if (chosen[row]) found.push(place); });
    return found;
  };
  const scatter = byId('scatter');
  const trace = piece => ({
    type: webgl === 'none' ? 'scatter' : 'scattergl', mode: 'markers', hoverinfo: 'none',
    visible: !hidden.has(piece.layer),
    x: pick(allX, piece.rows), y: pick(allY, piece.rows), selectedpoints: chosenPoints(piece),
    marker: { color: colouring.layers[piece.layer].colour, symbol: colouring.layers[piece.layer].symbol,
      size: Math.min(Math.max(200 / Math.sqrt(Math.max(n, 1)), 2.5), 8), opacity: n > MANY_ROWS ? 0.5 : 0.75 },
    selected: { marker: { opacity: 0.9 } }, unselected: { marker: { opacity: 0.15, color: '#aab2bb' } }
  });
  const drawScatter = () => draw('scatter', pieces.map(trace), {
    margin: { l: 50, r: 10, t: 10, b: 45 }, hovermode: 'closest', showlegend: false, uirevision: 'kept',
    // A finger on the plot must scroll the page, until a tool is taken up.
    dragmode: narrow ? false : 'pan', selectionrevision: 'kept',
    xaxis: axis(data.titles[0]), yaxis: axis(data.titles[1], { showticklabels: !data.strip })
  }, { plotGlPixelRatio: n > MANY_ROWS ? 1 : 2 });

  const element = (kind, className, text) => {
    const made = document.createElement(kind);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const SHAPES = { circle: 'M8 1a7 7 0 1 0 .01 0z', square: 'M2 2h12v12H2z', 'triangle-up': 'M8 1l7 13H1z',
    diamond: 'M8 0l8 8-8 8-8-8z' };
  const swatch = layer => {
    const space = 'http://www.w3.org/2000/svg';
    const svg = document.createElementNS(space, 'svg'), path = document.createElementNS(space, 'path');
    svg.setAttribute('viewBox', '0 0 16 16');
    svg.setAttribute('aria-hidden', 'true');
    path.setAttribute('d', SHAPES[layer.symbol]);
    path.setAttribute('fill', layer.colour);
    svg.append(path);
    return svg;
  };
  let entries = [];
  const listLayers = () => {
    entries = colouring.layers.map((layer, i) => {
      const item = element('li'), label = element('label'), box = element('input');
      const button = element('button'), number = element('span', 'count');
      const bar = element('span', 'bar'), fill = element('i');
      box.type = 'checkbox';
      box.checked = true;
      box.setAttribute('aria-label', 'show ' + layer.name);
      label.append(box, swatch(layer));
      button.type = 'button';
      bar.append(fill);
      button.append(element('span', 'name', layer.name), number, bar);
      button.title = layer.name;
      box.addEventListener('change', () => {
        hidden[box.checked ? 'delete' : 'add'](i);
        item.classList.toggle('hidden', !box.checked);
        const ofLayer = pieces.map((piece, place) => piece.layer === i ? place : -1).filter(place => place >= 0);
        Plotly.restyle(scatter, { visible: box.checked }, ofLayer);
      });
      button.addEventListener('click', () => choose(chosenLayer === i ? null : row => colouring.codes[row] === i, i));
      item.append(label, button);
      return { item, button, number, fill };
    });
    byId('layers').replaceChildren(...entries.map(entry => entry.item));
  };
  const countLayers = () => {
    let total = 0;
    const most = Math.max(1, ...rows.map(places => places.length));
    entries.forEach((entry, i) => {
      let here = 0;
      if (chosen) rows[i].forEach(row => { here += chosen[row]; });
      total += here;
      entry.number.textContent = (chosen ? count(here) + ' of ' : '') + count(rows[i].length);
      entry.fill.style.width = 100 * (chosen ? here / Math.max(rows[i].length, 1) : rows[i].length / most) + '%';
      entry.button.setAttribute('aria-pressed', String(chosenLayer === i));
    });
    byId('selection').textContent = chosen ? count(total) + ' of ' + count(n) + ' rows selected' : count(n) + ' rows';
    byId('clear').hidden = !chosen;
  };
  const distances = read('distance-data');
  if (distances) {
    distances.bins = unpack(distances.bins, Uint8Array);
    distances.distances = unpack(distances.distances, Float32Array);
    distances.first = unpack(distances.first, Int32Array);
    distances.second = unpack(distances.second, Int32Array);
  }
  const drawDistances = () => {
    if (!distances) return;
    const box = (name, colour, keep) => {
      const x = [], y = [];
      distances.bins.forEach((bin, i) => { if (keep(i)) { x.push(bin); y.push(distances.distances[i]); } });
      return { type: 'box', name: name + ' (' + count(x.length) + ')', x, y, boxpoints: false, line: { width: 1.5 },
        marker: { color: colour }, hoverinfo: 'y' };
    };
    const boxes = [box('all pairs', '#4a5765', () => true)];
    // Rows that are not drawn (n and beyond) cannot be chosen.
    if (chosen) {
      boxes.push(box('with a selected row', '#bd1f01', i => chosen[distances.first[i]] || chosen[distances.second[i]]));
    }
    const edges = distances.edges.map((edge, i) => narrow && i % 2 ? '' : String(edge));
    draw('distances', boxes, {
      boxmode: 'group', margin: { l: 60, r: 10, t: 40, b: 60 }, showlegend: true, legend: { orientation: 'h', y: 1.1 },
      dragmode: false, yaxis: axis('distance in the embedding', { rangemode: 'tozero', fixedrange: true }),
      xaxis: axis('distance in the features', { fixedrange: true, tickangle: 0,
        tickvals: edges.map((_, i) => i - 0.5), ticktext: edges, range: [-0.6, edges.length - 1.4] })
    });
  };
  const linkViews = () => { countLayers(); drawDistances(); };
  let linking = false;
  // Choose the rows for which `inside` holds, or none for null; hidden rows are never chosen.
  function choose(inside, layer) {
    chosen = null;
    chosenLayer = inside ? layer : null;
    if (inside) {
      chosen = new Uint8Array(n);
      for (let row = 0; row < n; row++) chosen[row] = !hidden.has(colouring.codes[row]) && inside(row) ? 1 : 0;
    }
    // plotly tells of a selection when its outline is taken away too.
    linking = true;
    Plotly.update(scatter, { selectedpoints: pieces.map(chosenPoints) }, { selections: [] })
      .finally(() => { linking = false; });
    linkViews();
  }
  const colourBy = place => {
    colouring = data.colourings[place];
    hidden = new Set();
    chosenLayer = null;
    split();
    listLayers();
    drawScatter();
    linkViews();
  };
  colourBy(0);
  byId('colour-by').addEventListener('change', event => colourBy(Number(event.target.value)));
  byId('clear').addEventListener('click', () => choose(null));

  const tip = byId('tip');
  scatter.on('plotly_hover', event => {
    const point = event.points[0], row = pieces[point.curveNumber].rows[point.pointNumber];
    const lines = ['id ' + ids[row]];
    data.colourings.forEach(other => {
      const name = other.layers[other.codes[row]].name, value = other.values ? other.values[row] : NaN;
      if (!other.plain) lines.push(other.name + ': ' + (isNaN(value) ? name : Number(value.toPrecision(6))));
    });
    tip.replaceChildren(...lines.map(line => element('div', '', line)));
    tip.hidden = false;
    const frame = scatter.getBoundingClientRect();
    const x = event.event.clientX - frame.left, y = event.event.clientY - frame.top;
    tip.style.left = Math.max(0, x + 14 + tip.offsetWidth > frame.width ? x - 14 - tip.offsetWidth : x + 14) + 'px';
    tip.style.top = Math.max(0, Math.min(y + 14, frame.height - tip.offsetHeight)) + 'px';
  });
  scatter.on('plotly_unhover', () => { tip.hidden = true; });
  // plotly has marked the points of each trace by then; listing them in the event again would be slow.
  scatter.on('plotly_selected', event => {
    if (!event || linking) return;
    chosen = new Uint8Array(n);
    chosenLayer = null;
    pieces.forEach((piece, i) => {
      if (!hidden.has(piece.layer)) {
        (scatter.data[i].selectedpoints || []).forEach(place => { chosen[piece.rows[place]] = 1; });
      }
    });
    if (chosen.includes(1)) linkViews(); else choose(null);
  });
  scatter.on('plotly_deselect', () => { if (!linking) choose(null); });

  const MODES = { move: 'pan', box: 'select', lasso: 'lasso' };
  const showMode = mode => Object.keys(MODES).forEach(key => {
    byId(key).setAttribute('aria-pressed', String(MODES[key] === mode));
  });
  Object.keys(MODES).forEach(key => byId(key).addEventListener('click', () => {
    const mode = scatter.layout.dragmode === MODES[key] ? false : MODES[key];
    Plotly.relayout(scatter, { dragmode: mode });
    showMode(mode);
  }));
  showMode(narrow ? false : 'pan');
  const zoom = factor => {
    const change = {};
    ['xaxis', 'yaxis'].forEach(name => {
      const [low, high] = scatter.layout[name].range, half = (high - low) * factor / 2;
      change[name + '.range'] = [(low + high) / 2 - half, (low + high) / 2 + half];
    });
    Plotly.relayout(scatter, change);
  };
  byId('zoom-in').addEventListener('click', () => zoom(0.6));
  byId('zoom-out').addEventListener('click', () => zoom(1 / 0.6));
  byId('whole').addEventListener('click', () =>
    Plotly.relayout(scatter, { 'xaxis.autorange': true, 'yaxis.autorange': true }));
  byId('picture').addEventListener('click', () =>
    Plotly.downloadImage(scatter, { format: 'png', filename: 'embedding', scale: 2 }));

  const curves = read('loss-data');
  if (curves.length) {
    draw('loss', curves, {
      margin: { l: 60, r: 10, t: 40, b: 50 }, hovermode: 'x unified', showlegend: curves.length > 1,
      dragmode: narrow ? false : 'pan', yaxis: axis('loss'),
      xaxis: axis('epoch', curves[0].x.length < 10 ? { dtick: 1 } : { rangemode: 'tozero' }),
      legend: { orientation: 'h', y: 1.12 }
    });
  }
  document.body.dataset.drawn = '';  // for what waits for the page
})();
