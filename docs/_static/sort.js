// Tables of the class "sortable": a click on a heading sorts by that column, numbers as numbers.
document.addEventListener("DOMContentLoaded", () => {
  const value = (row, k) => {
    const text = row.cells[k] ? row.cells[k].textContent.trim() : "";
    const number = parseFloat(text.replace("−", "-"));
    return text === "" ? null : Number.isNaN(number) ? text.toLowerCase() : number;
  };
  for (const table of document.querySelectorAll(".sortable table, table.sortable")) {
    table.classList.add("sortable");
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, k) => {
      head.tabIndex = 0;
      const sort = () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].sort((a, b) => {
          const [u, v] = [value(a, k), value(b, k)];
          if (u === null || v === null) return (u === null) - (v === null);
          const order = typeof u === typeof v ? (u < v ? -1 : u > v ? 1 : 0) : typeof u === "number" ? -1 : 1;
          return up ? order : -order;
        });
        body.append(...rows);
      };
      head.addEventListener("click", sort);
      head.addEventListener("keydown", (e) => e.key === "Enter" && sort());
    });
  }
});
