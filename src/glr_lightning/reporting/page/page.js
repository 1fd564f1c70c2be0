"use strict";
// A click on a heading sorts by it, numbers from the largest, words from A; another click turns the order round.
const value = (row, place, numeric) => {
  const text = row.cells[place].textContent.trim();
  const number = parseFloat(text.replaceAll(",", ""));
  return numeric ? (Number.isNaN(number) ? null : number) : text === "—" ? null : text;
};
const compare = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true });
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, place) => heading.querySelector("button").addEventListener("click", () => {
    const numeric = heading.classList.contains("number");
    const before = heading.getAttribute("aria-sort");
    const ascending = before ? before === "descending" : !numeric;
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, value: value(row, place, numeric) }));
    const known = rows.filter((each) => each.value !== null);
    known.sort((a, b) => (ascending ? 1 : -1) * compare(a.value, b.value));
    const unknown = rows.filter((each) => each.value === null);  // last, whichever the order
    table.tBodies[0].append(...[...known, ...unknown].map((each) => each.row));
    headings.forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
  }));
}
