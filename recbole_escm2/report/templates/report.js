"use strict";

// ---- sorting: best first, then worst first, then as it was; rows without a value stay last
{
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const original = [...body.rows];
  const status = document.getElementById("sorted");
  const key = (row, column) => row.cells[column].dataset.order;
  const compare = (a, b) => {
    const difference = Number(a) - Number(b);
    return Number.isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference;
  };
  for (const [column, heading] of [...table.tHead.rows[0].cells].entries()) {
    const button = heading.querySelector("button");
    const best = button.dataset.best;
    const worst = best === "ascending" ? "descending" : "ascending";
    button.addEventListener("click", () => {
      const next = { none: best, [best]: worst, [worst]: "none" }[heading.getAttribute("aria-sort")];
      for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
      heading.setAttribute("aria-sort", next);
      const turn = next === worst ? -1 : 1;
      const rows = [...original];
      if (next !== "none") {
        rows.sort((a, b) => {
          const [x, y] = [key(a, column), key(b, column)];
          if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
          return turn * compare(x, y);
        });
      }
      body.append(...rows);
      const name = button.textContent.trim().replace(/\s+/g, " ");
      status.textContent =
        next === "none" ? "" : `Sorted by ${name}, ${next === best ? "best" : "worst"} first.`;
    });
  }
}

// ---- what stands behind a number: while pointed at, or until tapped away
{
  const panel = document.getElementById("panel");
  let pinned = null;
  const show = (cell) => {
    const detail = cell.querySelector(".detail").cloneNode(true);
    panel.replaceChildren(...detail.childNodes);
    panel.hidden = false;
    const at = cell.getBoundingClientRect();
    const own = panel.getBoundingClientRect();
    const left = Math.min(at.left, document.documentElement.clientWidth - own.width - 8);
    const below = at.bottom + 4;
    const top = below + own.height > innerHeight ? at.top - own.height - 4 : below;
    panel.style.left = `${Math.max(8, left)}px`;
    panel.style.top = `${Math.max(8, top)}px`;
  };
  const unpin = () => {
    pinned?.classList.remove("pinned");
    pinned = null;
    panel.hidden = true;
  };
  for (const cell of document.querySelectorAll("#table td.value")) {
    cell.addEventListener("pointerenter", (event) => {
      if (!pinned && event.pointerType === "mouse") show(cell);
    });
    cell.addEventListener("pointerleave", () => {
      if (!pinned) panel.hidden = true;
    });
    cell.addEventListener("click", () => {
      const again = cell === pinned;
      unpin();
      if (again) return;
      pinned = cell;
      cell.classList.add("pinned");
      show(cell);
    });
  }
  document.addEventListener("click", (event) => {
    if (pinned && !event.target.closest("td.value, #panel")) unpin();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") unpin();
  });
  document.addEventListener("scroll", unpin, { capture: true, passive: true });
}

// ---- paper has nothing to open
{
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const each of opened) each.open = true;
  });
  addEventListener("afterprint", () => {
    for (const each of opened) each.open = false;
  });
}
