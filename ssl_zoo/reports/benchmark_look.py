"""How the benchmark page looks, and the script that sorts its table; without scripts it is a table all the same."""

LOOK = """\
main { max-width: 1400px; } .lead { max-width: 78ch; margin: 4px 0 20px; }
.scroll { overflow-x: auto; } .scroll:focus-visible { outline: 2px solid #2a6f97; }
#results { border-collapse: separate; border-spacing: 0; border-top: 2px solid #22313f; border-bottom: 2px solid #22313f;
  font-variant-numeric: tabular-nums; font-size: 13.5px; }
#results th { border-bottom: 1px solid #22313f; padding: 6px 10px 6px 0; text-align: left; font-weight: 600; vertical-align: bottom; }
#results td { padding: 6px 10px 6px 0; white-space: nowrap; overflow-wrap: normal; } #results .number { text-align: right; }
#results :is(th, td):first-child { position: sticky; left: 0; z-index: 1; background: #fff; color: #22313f; min-width: 84px;
  max-width: 180px; white-space: normal; padding-left: 2px; width: auto; }
#results tbody tr:hover td { background: #f1f6f9; } #results tr.stale td { color: #6c757d; }
#results small { display: block; color: #6c757d; font-size: 11.5px; line-height: 1.35; } #results .std { color: #6c757d; font-weight: 400; }
#results th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; text-align: inherit; }
#results th button:focus-visible, a:focus-visible { outline: 2px solid #2a6f97; outline-offset: 2px; border-radius: 2px; }
#results th button::after { content: " ↕"; color: #adb5bd; }
#results th[aria-sort=ascending] button::after { content: " ↑"; color: #2a6f97; }
#results th[aria-sort=descending] button::after { content: " ↓"; color: #2a6f97; }
#results td:first-child span { white-space: nowrap; }
sup { line-height: 0; font-size: 10.5px; } sup a { text-decoration: none; }
a { color: #2a6f97; } code { font-size: 12.5px; overflow-wrap: anywhere; }
ol, ul { margin: 0; padding-left: 22px; font-size: 13.5px; } li { margin: 3px 0; overflow-wrap: anywhere; } .note { max-width: 110ch; }
pre { font-size: 12.5px; margin: 0 0 8px; } h3 { font-size: 14px; margin: 14px 0 4px; }
@media (max-width: 640px) { main { padding: 18px 10px 40px; } section { padding: 14px 12px; }
  .wide img { max-width: none; width: 640px; } #results :is(th, td):first-child { max-width: 104px; } }
"""
SORT = """\
const table = document.getElementById("results"), body = table.tBodies[0];
[...table.tHead.rows[0].cells].forEach((cell, column) => {
  if (!cell.dataset.kind) return;
  const button = document.createElement("button");
  button.type = "button";
  button.append(cell.firstChild);  // not the link to a footnote behind it
  cell.prepend(button);
  button.addEventListener("click", () => {
    const up = cell.getAttribute("aria-sort") ? cell.getAttribute("aria-sort") === "descending" : cell.dataset.kind === "text";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => cell.dataset.kind === "text" ? a.localeCompare(b) : a - b;
    const rows = [...body.rows].sort((a, b) => !key(a) - !key(b) || (up ? 1 : -1) * compare(key(a), key(b)));
    body.append(...rows);
  });
});
"""
