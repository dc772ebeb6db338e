"""The report's style sheet, and its few lines of script."""

STYLE = """
:root { color-scheme: light dark; --bg: #fbfbfa; --fg: #1d2129; --soft: #646b78; --line: #dfe2e8;
  --panel: #ffffff; --accent: #059669; --warn: #b45309; }
@media (prefers-color-scheme: dark) { :root { --bg: #14161a; --fg: #e7e9ee; --soft: #9aa2b1;
  --line: #2d323b; --panel: #1b1e24; --accent: #34d399; --warn: #fbbf24; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--bg); color: var(--fg);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
main > section > p { max-width: 56rem; }
h1 { font-size: clamp(1.5rem, 4.5vw, 2.3rem); line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .7rem; border-bottom: 1px solid var(--line);
  padding-bottom: .3rem; }
h3 { margin: 1.2rem 0 .4rem; font-size: 1.05rem; }
h4 { margin: 0; font-size: .9rem; color: var(--soft); flex: 0 0 5rem; }
.lead { font-size: 1.1rem; color: var(--soft); max-width: 46rem; margin: 0; }
.answer { font-size: 1.1rem; max-width: 46rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; }
.card { background: var(--panel); border: 1px solid var(--line); border-top: 4px solid var(--c);
  border-radius: .5rem; padding: .8rem 1rem; }
.card h3, .card p { margin: 0; }
.card p { color: var(--soft); font-size: .9rem; }
.card .big { color: var(--fg); font-size: 1.9rem; font-weight: 650; }
.beside { display: flex; flex-wrap: wrap; gap: 1.4rem; align-items: flex-start; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; }
th:first-child, td:nth-child(2), thead th:nth-child(2) { text-align: left; }
.seed td:nth-child(2), .seed thead th:nth-child(2) { text-align: right; }
.seed { opacity: .8; }
tr.main td { font-weight: 650; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr));
  gap: 1rem; }
figure { margin: 0; background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  padding: .5rem; }
figure svg { width: 100%; height: auto; display: block; }
article { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  padding: .2rem 1rem 1rem; margin-bottom: 1rem; }
.row { display: flex; flex-wrap: wrap; gap: .8rem; align-items: center; padding: .5rem 0;
  border-top: 1px solid var(--line); }
.player { flex: 1 1 15rem; min-width: 0; font-size: .85rem; }
.unsure { flex: 0 1 12rem; min-width: 0; font-size: .85rem; align-self: start; }
.player img, .unsure img { width: 100%; height: 72px; display: block; border-radius: .3rem;
  margin: .2rem 0; object-fit: fill; }
.player audio { width: 100%; height: 36px; }
.score { float: right; color: var(--soft); }
.missing { color: var(--warn); }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem;
  overflow-x: auto; }
dt { font-weight: 600; margin-top: .5rem; }
dd { margin: 0; color: var(--soft); overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
"""

# One player at a time; within a song the next one goes on where the last one is.
SWITCH = """
let last = null;
document.querySelectorAll("audio").forEach(player => player.addEventListener("play", () => {
  if (last && last !== player) {
    if (!last.ended && last.closest("article") === player.closest("article"))
      player.currentTime = last.currentTime;
    last.pause();
  }
  last = player;
}));
"""
