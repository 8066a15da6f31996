"use strict";
// Draws the charts of the page in the reader's theme. Text from the data only ever becomes textContent.
(() => {
  const root = document.documentElement;
  const configs = JSON.parse(document.getElementById("themes").textContent);
  const toggle = document.getElementById("theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const charts = [...document.querySelectorAll("[data-spec]")];
  const drawn = new Map();
  let queue = Promise.resolve();

  const theme = () => root.dataset.theme || (system.matches ? "dark" : "light");

  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);

  function showTip(_handler, event, _item, value) {
    tip.hidden = value === null || value === undefined || value === "";
    if (tip.hidden) return;
    const pairs = typeof value === "object" ? Object.entries(value) : [["", value]];
    tip.replaceChildren(...pairs.map(([name, text]) => {
      const line = document.createElement("div");
      const label = document.createElement("span");
      label.textContent = name;
      line.append(label, " ", String(text));
      return line;
    }));
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, root.clientWidth - box.width - 8);
    const below = event.clientY + 14 + box.height < window.innerHeight;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${below ? event.clientY + 14 : event.clientY - box.height - 10}px`;
  }

  const sliderOf = (element) => element.closest(".during")?.querySelector("input[type=range]");

  const listsOf = (element) => [...(element.closest(".chosen")?.querySelectorAll("select") ?? [])];

  async function draw() {
    root.dataset.charts = "drawing";
    const name = theme();
    for (const element of charts) {
      const spec = JSON.parse(document.getElementById(element.dataset.spec).textContent);
      element.style.minHeight = `${element.clientHeight}px`;
      drawn.get(element)?.finalize();
      drawn.delete(element);
      // Legends wrap by the room there is; a square plot has one unit equally long on both axes.
      spec.params[0].value = element.clientWidth;
      const slider = sliderOf(element);
      if (slider) spec.params.find((param) => param.name === "at").value = Number(slider.value);
      for (const list of listsOf(element)) {
        const param = spec.params.find((one) => one.name === list.dataset.param);
        if (param) param.value = Number(list.value);
      }
      const side = Math.max(180, Math.min(element.clientWidth - 84, 300));
      if (element.classList.contains("square")) spec.width = spec.height = side;
      else spec.width = element.clientWidth;
      try {
        const result = await vegaEmbed(element, spec, {
          ast: true, actions: false, renderer: "svg", defaultStyle: false, config: configs[name], tooltip: showTip,
        });
        drawn.set(element, result);
        // Vega names the element a graphics document with one node per mark; it is one picture with a table.
        element.setAttribute("role", "img");
        element.removeAttribute("aria-roledescription");
        element.dataset.drawn = name;
      } catch (error) {
        element.textContent = "This chart could not be drawn. Its data are in the table below.";
        element.dataset.drawn = "failed";
        console.error(error);
      }
      element.style.minHeight = "";
    }
    root.dataset.charts = "ready";
  }

  function redraw() {
    toggle.textContent = theme() === "dark" ? "Light theme" : "Dark theme";
    queue = queue.then(draw);
  }

  toggle.hidden = false;
  toggle.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    redraw();
  });
  system.addEventListener("change", () => { if (!root.dataset.theme) redraw(); });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  let timer = 0;
  let width = root.clientWidth;
  window.addEventListener("resize", () => {
    window.clearTimeout(timer);
    timer = window.setTimeout(() => {
      if (root.clientWidth !== width) redraw();
      width = root.clientWidth;
    }, 150);
  });

  for (const button of document.querySelectorAll("[data-save]")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      const element = charts.find((chart) => chart.dataset.spec === button.dataset.save);
      const result = drawn.get(element);
      if (!result) return;
      const link = document.createElement("a");
      link.href = await result.view.toImageURL(button.dataset.format, 2);
      link.download = `${element.dataset.name}.${button.dataset.format}`;
      link.click();
    });
  }

  // Sliders over training steps: without this the charts could not be drawn either, so they are hidden until now.
  for (const box of document.querySelectorAll(".during")) {
    const slider = box.querySelector("input[type=range]");
    const button = box.querySelector(".slider button");
    const output = box.querySelector("output");
    const steps = slider.dataset.steps.split(" ");
    let timer = 0;

    function show() {
      const step = steps[slider.value];
      output.textContent = step;
      slider.setAttribute("aria-valuetext", `step ${step}, ${Number(slider.value) + 1} of ${steps.length}`);
      // In the queue behind a redrawing, and always of the newest value: a fast hand skips steps, and never lags.
      queue = queue.then(async () => {
        if (box.dataset.shown === slider.value) return;
        const at = slider.value;
        for (const element of box.querySelectorAll(".chart")) {
          await drawn.get(element)?.view.signal("at", Number(at)).runAsync();
        }
        box.dataset.shown = at;
      });
    }

    function stop() {
      window.clearInterval(timer);
      timer = 0;
      button.textContent = "Play";
    }

    function next() {
      slider.value = Number(slider.value) + 1;
      show();
      if (Number(slider.value) === steps.length - 1) stop();
    }

    button.addEventListener("click", () => {
      if (timer) return stop();
      if (Number(slider.value) === steps.length - 1) { slider.value = 0; show(); }
      button.textContent = "Pause";
      timer = window.setInterval(next, 700);
    });
    slider.addEventListener("input", () => { stop(); show(); });
    box.querySelector(".slider").hidden = false;
    show();
  }

  // Lists that choose what charts show: a change waits behind a redrawing, as the sliders do.
  for (const box of document.querySelectorAll(".chosen")) {
    for (const list of box.querySelectorAll("select")) {
      list.addEventListener("change", () => {
        queue = queue.then(async () => {
          for (const element of box.querySelectorAll(".chart")) {
            await drawn.get(element)?.view.signal(list.dataset.param, Number(list.value)).runAsync();
          }
          box.dataset.shown = [...box.querySelectorAll("select")].map((one) => one.value).join(" ");
        });
      });
    }
    box.querySelector(".chooser").hidden = false;
  }

  // Tables of layers: without this they are whole, in order of execution; with it they can be filtered and sorted.
  const words = new Intl.Collator("en", { numeric: true });

  function sortBy(table, column, header) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const cell = (row) => row.cells[column];
    const numeric = rows.some((row) => "value" in cell(row).dataset);
    const before = header.getAttribute("aria-sort");
    const down = before ? before === "ascending" : numeric;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => numeric ? cell(row).dataset.value : cell(row).textContent.trim();
    const empty = (text) => text === "" || text === "—";
    rows.sort((a, b) => {
      const one = key(a), other = key(b);
      if (empty(one) || empty(other)) return empty(one) - empty(other);  // without a value: last, either way
      const order = numeric ? Number(one) - Number(other) : words.compare(one, other);
      return down ? -order : order;
    });
    body.append(...rows);
  }

  for (const box of document.querySelectorAll(".layers")) {
    const table = box.querySelector(".sortable");
    if (!table) continue;
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = header.textContent;
      button.addEventListener("click", () => sortBy(table, column, header));
      header.replaceChildren(button);
    });
    const input = box.querySelector("input");
    const status = box.querySelector(".shown");
    const rows = [...table.tBodies[0].rows];
    const texts = rows.map((row) => `${row.cells[0].textContent}\n${row.cells[1].textContent}`.toLowerCase());
    const filter = () => {
      const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      rows.forEach((row, place) => {
        row.hidden = !wanted.every((word) => texts[place].includes(word));
        count += row.hidden ? 0 : 1;
      });
      status.textContent = `${count} of ${rows.length} ${table.dataset.of}`;
    };
    input.addEventListener("input", filter);
    box.querySelector(".filter").hidden = false;
    filter();
  }

  redraw();
})();
