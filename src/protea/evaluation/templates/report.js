"use strict";
// Sort the leaderboard by a heading; rows without a value stay last. Reference rows take part.
for (const button of document.querySelectorAll(".board thead button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, at = head.cellIndex, body = document.querySelector(".board tbody");
    const down = head.getAttribute("aria-sort") === "ascending";
    const key = (row) => row.cells[at].dataset.sort;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    body.append(...rows);
  });
}
if (navigator.clipboard) {
  for (const button of document.querySelectorAll(".copy")) {
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.previousElementSibling.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
  }
}
