"""The page's style sheet and script."""

from __future__ import annotations

__all__ = ["SCRIPT", "STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #d0d7de; --soft: #f6f8fa; --dim: #59636e;
  --track: #eef1f4; --bad: #f9c6c2; --heat: #2f6feb; --frame: #9a6700; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --paper: #0d1117; --line: #3d444d; --soft: #161b22;
  --dim: #9198a1; --track: #1c222a; --bad: #6b1f22; --heat: #58a6ff; --frame: #e3b341; } }
* { box-sizing: border-box; }
body { color: var(--ink); background: var(--paper); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.7rem; margin: 0 0 .5rem; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 60rem; }
table { border-collapse: collapse; margin: .5rem 0; }
.wide { overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .2rem .6rem; text-align: left; white-space: nowrap; }
th { background: var(--soft); font-weight: 600; }
td { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; }
.right { text-align: right; font-variant-numeric: tabular-nums; }
pre { background: var(--soft); border: 1px solid var(--line); padding: .75rem; overflow-x: auto;
  font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, monospace; }
.finding { border-left: 4px solid #d1242f; background: var(--soft); }
.note { color: var(--dim); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: .75rem; margin: 1rem 0; }
.tiles div { border: 1px solid var(--line); border-radius: 6px; padding: .5rem .75rem; background: var(--soft); }
.tiles b { display: block; font-size: 1.25rem; } .tiles span { color: var(--dim); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem 2.5rem; }
figure { margin: 0; min-width: 0; } figcaption { font-weight: 600; margin-bottom: .4rem; }
.beside { display: flex; flex-wrap: wrap; gap: 1rem 2.5rem; align-items: flex-start; } .beside > * { max-width: 100%; }
svg { display: block; } .legend svg { display: inline-block; vertical-align: -1px; }
svg text { fill: var(--ink); font: 12px ui-monospace, SFMono-Regular, Menlo, monospace; }
svg .soft { fill: var(--dim); } svg .end { text-anchor: end; } svg .mid { text-anchor: middle; }
.timeline, .strip { min-width: 42rem; }
.track { fill: var(--track); } .heat { fill: var(--heat); }
.frame { fill: none; stroke: var(--frame); stroke-width: 2; }
.here { fill: var(--frame); } .own { fill: var(--frame); font-weight: 700; }
.rule { stroke: var(--line); } .phase { opacity: .14; }
.is-forward { fill: #4c78a8; } .is-backward { fill: #e45756; } .is-optimizer { fill: #54a24b; }
.is-other { fill: #888; }
.legend span { display: inline-block; margin: 0 1.1rem .3rem 0; font-size: 13px; white-space: nowrap; }
.c0 { fill: #4c78a8; } .c1 { fill: #f58518; } .c2 { fill: #54a24b; } .c3 { fill: #e45756; } .c4 { fill: #b279a2; }
.c5 { fill: #3ba7a0; } .c6 { fill: #d6a400; } .c7 { fill: #9d755d; } .c8 { fill: #f783ac; } .c9 { fill: #8c8c8c; }
.mark:hover, .heat:hover { stroke: var(--ink); stroke-width: 1; }
.dim .mark { opacity: .12; } .dim .mark.kept { opacity: 1; }
details { margin: 2rem 0; } summary { cursor: pointer; font-size: 1.2rem; font-weight: 600; }
input { font: inherit; padding: .25rem .5rem; width: min(100%, 24rem); }
"""

SCRIPT = """
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
"""
