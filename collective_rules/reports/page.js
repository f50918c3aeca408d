(() => {
  const filter = document.getElementById("filter");
  if (filter) {
    const rows = [...document.querySelectorAll("#calls tbody tr")];
    filter.hidden = false;
    filter.addEventListener("input", () => {
      const wanted = filter.value.toLowerCase();
      for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
  }
  const timeline = document.querySelector(".timeline");
  for (const name of document.querySelectorAll(".legend [data-colour]")) {
    const marks = () => timeline.querySelectorAll(".mark." + name.dataset.colour);
    name.addEventListener("mouseenter", () => {
      timeline.classList.add("dim");
      for (const mark of marks()) mark.classList.add("kept");
    });
    name.addEventListener("mouseleave", () => {
      timeline.classList.remove("dim");
      for (const mark of marks()) mark.classList.remove("kept");
    });
  }
  document.documentElement.dataset.script = "ran";
})();
