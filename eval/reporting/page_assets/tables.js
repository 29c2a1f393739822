// Tables that sort by their headers and hide the rows that do not contain what is typed.

function startTable(box) {
  const body = box.querySelector("tbody");
  const rows = [...body.rows];
  const headers = [...box.querySelectorAll("th")];
  startColumns(box, headers.length);
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const isNumber = header.classList.contains("number");
      const before = header.getAttribute("aria-sort");
      const descending = before === "none" ? isNumber : before === "ascending";
      headers.forEach((other) => other.setAttribute("aria-sort", "none"));
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      body.append(...sortedRows(rows, column, isNumber, descending));
    });
  });
  const input = box.querySelector("input");
  if (!input) return;
  const status = box.querySelector(".count");
  const texts = rows.map((row) => row.textContent.toLowerCase().replaceAll("\u00a0", " "));
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/);
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word));
    });
    const shown = rows.filter((row) => !row.hidden).length;
    status.textContent = shown === rows.length ? "" : `${count(shown)} of ${count(rows.length)} rows`;
  });
}

// The switch between the columns that matter most and all of them. Without it, as on paper, all are there.
function startColumns(box, number) {
  const toggle = box.querySelector("button.columns");
  if (!toggle) return;
  const show = (all) => {
    box.classList.toggle("short", !all);
    toggle.setAttribute("aria-pressed", String(all));
    toggle.textContent = all ? "Fewer columns" : `All ${count(number)} columns`;
  };
  toggle.addEventListener("click", () => show(box.classList.contains("short")));
  toggle.hidden = false;
  show(false);
}

function sortedRows(rows, column, isNumber, descending) {
  const key = (row) => {
    const cell = row.cells[column];
    if (isNumber) return "sort" in cell.dataset ? Number(cell.dataset.sort) : null;
    return cell.dataset.sort ?? cell.textContent;
  };
  const keyed = rows.map((row) => [key(row), row]);
  const known = keyed.filter(([value]) => value !== null);
  known.sort(([first], [second]) => {
    const order = isNumber ? first - second : first.localeCompare(second, "en", { numeric: true });
    return descending ? -order : order;
  });
  return [...known, ...keyed.filter(([value]) => value === null)].map(([, row]) => row);
}
