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
      // A plain wheel scrolls the page, unless the maps have been clicked or zoomed: then it is meant for them.
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
    move(1, 0, 0);
  }
  document.querySelectorAll(".image").forEach(zoomable);
})();
