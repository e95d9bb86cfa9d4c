"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");

  const slider = document.getElementById("opacity");
  if (slider) {
    const shown = document.getElementById("opacity-shown");
    const apply = () => {
      root.style.setProperty("--opacity", slider.value / 100);
      shown.textContent = slider.value + " %";
    };
    slider.addEventListener("input", apply);
    apply();
  }

  // One choice for all images; an image without such a class keeps its own, and one chosen by itself unmarks the choice.
  const all = [...document.querySelectorAll("input[name=all-classes]")];
  const single = [...document.querySelectorAll(".classes input")];
  for (const radio of all) radio.addEventListener("change", () => {
    for (const one of single) if (one.value === radio.value) one.checked = true;
  });
  for (const one of single) one.addEventListener("change", () => {
    for (const radio of all) radio.checked = single.every((r) => r.value !== radio.value || r.checked);
  });

  const MOST = 16, STEP = 1.3, SHIFT = 0.1;
  const within = (value, low, high) => Math.min(high, Math.max(low, value));

  // A point p of the view, in shares of its sides, shows the point (p - x) / z of the picture; all cells share x, y and z.
  function zoomable(image) {
    const cells = image.querySelector(".cells");
    const [out, back, closer] = ["out", "reset", "in"].map((k) => image.querySelector(`[data-zoom=${k}]`));
    const shown = image.querySelector(".zoom output");
    let z = 1, x = 0, y = 0;

    function move(toZ, toX, toY) {
      z = within(toZ, 1, MOST);
      x = within(toX, 1 - z, 0);
      y = within(toY, 1 - z, 0);
      for (const [name, value] of [["--z", z], ["--x", x], ["--y", y]]) cells.style.setProperty(name, value);
      image.classList.toggle("zoomed", z > 1);
      shown.textContent = z.toFixed(1) + "×";
      // Not disabled while it has the focus, which would be lost.
      for (const [button, idle] of [[out, z === 1], [back, z === 1], [closer, z === MOST]]) {
        button.setAttribute("aria-disabled", idle);
      }
    }
    function zoom(factor, px = 0.5, py = 0.5) {
      const next = within(z * factor, 1, MOST);
      move(next, px - ((px - x) / z) * next, py - ((py - y) / z) * next);
    }
    const shift = (dx, dy) => move(z, x + dx, y + dy);

    out.addEventListener("click", () => zoom(1 / STEP / STEP));
    closer.addEventListener("click", () => zoom(STEP * STEP));
    back.addEventListener("click", () => move(1, 0, 0));

    const keys = {
      "+": () => zoom(STEP), "=": () => zoom(STEP), "-": () => zoom(1 / STEP), "0": () => move(1, 0, 0),
      ArrowLeft: () => shift(SHIFT, 0), ArrowRight: () => shift(-SHIFT, 0),
      ArrowUp: () => shift(0, SHIFT), ArrowDown: () => shift(0, -SHIFT),
    };
    cells.addEventListener("keydown", (event) => {
      const act = keys[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key.startsWith("Arrow") && z === 1) return; // the page scrolls
      event.preventDefault();
      act();
    });

    const place = (event, view) => {
      const box = view.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    for (const view of cells.querySelectorAll(".view")) {
      // A plain wheel scrolls the page, unless the maps have the focus or are zoomed: then it is meant for them.
      view.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && z === 1 && !cells.contains(document.activeElement)) return;
        if (z === 1 && event.deltaY > 0 && !event.ctrlKey) return;
        event.preventDefault();
        const unit = event.deltaMode === 1 ? 16 : 1;
        zoom(Math.exp(-within(event.deltaY * unit, -100, 100) / (event.ctrlKey ? 120 : 300)), ...place(event, view));
      }, { passive: false });

      const held = new Map();
      const middle = () => {
        const points = [...held.values()];
        const [a, b] = [points[0], points[points.length - 1]];
        return [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2, Math.hypot(a[0] - b[0], a[1] - b[1])];
      };
      view.addEventListener("pointerdown", (event) => {
        held.set(event.pointerId, place(event, view));
        if (z > 1 || held.size > 1) view.setPointerCapture(event.pointerId);
      });
      view.addEventListener("pointermove", (event) => {
        if (!held.has(event.pointerId)) return;
        const [px, py, wide] = middle();
        held.set(event.pointerId, place(event, view));
        const [qx, qy, wider] = middle();
        if (held.size > 1 && wide > 0) zoom(wider / wide, px, py);
        if (z > 1) shift(qx - px, qy - py);
      });
      for (const end of ["pointerup", "pointercancel", "pointerleave"]) {
        view.addEventListener(end, (event) => held.delete(event.pointerId));
      }
    }
    const reset = () => move(1, 0, 0);
    reset();
    return reset;
  }
  document.querySelectorAll("details.image").forEach(zoomable);

  // As many columns as fit, in rows as even as can be.
  const boxes = [...document.querySelectorAll(".checks input")];
  const first = boxes.map((box) => box.checked);
  const shownText = document.getElementById("methods-shown");
  function arrange() {
    const chosen = boxes.filter((box) => box.checked).length;
    if (shownText) shownText.textContent = `${chosen} of ${boxes.length}`;
    const cells = [...document.querySelectorAll("details.image .cells")].find((one) => one.offsetParent !== null);
    if (!cells) return;
    const style = getComputedStyle(cells);
    const least = parseFloat(style.getPropertyValue("--least")) * parseFloat(getComputedStyle(root).fontSize);
    const gap = parseFloat(style.columnGap);
    const most = Math.max(1, Math.floor((cells.clientWidth + gap) / (least + gap)));
    root.style.setProperty("--columns", Math.ceil((chosen + 1) / Math.ceil((chosen + 1) / most)));
  }
  for (const box of boxes) box.addEventListener("change", arrange);
  for (const button of document.querySelectorAll("[data-methods]")) button.addEventListener("click", () => {
    boxes.forEach((box, i) => { box.checked = button.dataset.methods === "all" || first[i]; });
    arrange();
  });
  for (const image of document.querySelectorAll("details.image")) image.addEventListener("toggle", arrange);
  addEventListener("resize", arrange);
  arrange();

  for (const button of document.querySelectorAll("[data-fold]")) button.addEventListener("click", () => {
    for (const one of button.closest("section").querySelectorAll("details.image, details.metric, details.strips")) {
      one.open = button.dataset.fold === "open";
    }
  });
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details.metric")) one.open = true;
  });

  // One map beside its image, large; the arrows go through the methods that are shown.
  const large = document.getElementById("large");
  if (large) {
    const [photo, view] = large.querySelectorAll(".view");
    const cells = large.querySelector(".cells");
    const zoomLarge = zoomable(large);
    let figure = null;
    const seen = (element) => element.offsetParent !== null;
    const siblings = () => [...figure.parentElement.querySelectorAll(".cell")].filter(seen);

    function fill(next) {
      figure = next;
      const image = figure.closest("details.image");
      large.className = [...image.classList].filter((name) => name !== "card" && name !== "zoomed").join(" ");
      photo.firstElementChild.firstElementChild.setAttribute("aria-label", "The image");
      view.firstElementChild.replaceChildren(...[...figure.querySelector(".stage").children].filter(seen).map((e) => e.cloneNode(true)));
      const [title, ...scales] = figure.querySelector("figcaption").children;
      const name = [...image.querySelector("summary h3").childNodes].filter((e) => e.nodeType === 3 || seen(e));
      document.getElementById("large-name").textContent = title.textContent + ": " + name.map((e) => e.textContent).join("");
      document.getElementById("large-note").textContent = "Colour scale " + scales.filter(seen).map((e) => e.textContent).join("");
      const titles = [...image.querySelectorAll(".scores thead th")].slice(1);
      const row = image.querySelector(`.scores tr[data-method="${figure.dataset.method}"]`);
      document.getElementById("large-scores").replaceChildren(...titles.map((th, i) => {
        const pair = document.createElement("div");
        for (const [tag, text] of [["dt", th.textContent], ["dd", row.children[i + 1].textContent]]) {
          pair.appendChild(document.createElement(tag)).textContent = text;
        }
        return pair;
      }));
    }
    function step(by) {
      const all = siblings();
      fill(all[(all.indexOf(figure) + by + all.length) % all.length]);
    }
    function open(next) {
      fill(next);
      zoomLarge();
      large.showModal();
      cells.focus();
    }
    for (const cell of document.querySelectorAll("details.image .cell")) {
      let from = null;
      cell.querySelector(".view").addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; });
      cell.querySelector(".view").addEventListener("click", (event) => {
        const dragged = from && event.detail && Math.hypot(event.clientX - from[0], event.clientY - from[1]) > 4;
        if (!dragged) open(cell);
      });
    }
    for (const button of large.querySelectorAll("[data-step]")) button.addEventListener("click", () => step(Number(button.dataset.step)));
    large.querySelector("[data-close]").addEventListener("click", () => large.close());
    large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
    cells.addEventListener("keydown", (event) => {
      if (large.classList.contains("zoomed") || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "ArrowLeft") step(-1);
      if (event.key === "ArrowRight") step(1);
    });
  }

  // Columns sort: numbers by size, the largest first, words by the alphabet; what has no number comes last.
  const numberOf = (text) => parseFloat(text.trim().replace(/−/g, "-").replace(/,/g, ""));
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const rows = [...table.tBodies[0].rows];
        const texts = new Map(rows.map((row) => [row, row.cells[column].textContent.trim()]));
        const numbers = new Map(rows.map((row) => [row, numberOf(texts.get(row))]));
        const words = [...numbers.values()].every(Number.isNaN);
        const before = head.getAttribute("aria-sort");
        const up = before ? before === "descending" : words;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        rows.sort((a, b) => {
          if (words) return texts.get(a).localeCompare(texts.get(b)) * (up ? 1 : -1);
          const [x, y] = [numbers.get(a), numbers.get(b)];
          if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
          return (x - y) * (up ? 1 : -1);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }
})();
