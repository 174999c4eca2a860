"""The look of the report page: its style sheet. Charts take their colours from the variables at its top."""

STYLE_SHEET = """
:root { color-scheme: light dark;
  --page: #f5f6f8; --card: #fff; --ink: #1b2230; --muted: #5b6675; --line: #d9dee6;
  --accent: #2f6fdb; --warm: #d9772b; --tone: 42%; }
@media (prefers-color-scheme: dark) { :root {
  --page: #11151b; --card: #1a2029; --ink: #e8ecf2; --muted: #9aa6b6; --line: #323b48;
  --accent: #6ea2ff; --warm: #f0974e; --tone: 66%; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 24px 16px 48px; }
h1, p { overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.1rem; margin: 32px 0 8px; }
h3 { font-size: .95rem; margin: 0 0 4px; }
.evaluation { margin-top: 28px; }
.behind details details { margin-left: 14px; }
.behind h3 { margin-top: 14px; }
p { margin: 0 0 12px; color: var(--muted); max-width: 75ch; }
a { color: var(--accent); }
.grid { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  margin: 0; min-width: 0; }
.numbers { display: grid; gap: 12px; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); margin: 0; }
.numbers dt { color: var(--muted); font-size: .85rem; }
.numbers dd { margin: 0; font-size: 1.6rem; font-weight: 650; line-height: 1.3; }
.numbers small { display: block; font-size: .8rem; font-weight: 400; color: var(--muted); }
.wide { overflow-x: auto; }
.figure + .figure { margin-top: 12px; }
.matrix { width: auto; font-size: 12px; }
.matrix tr > * { border: 0; padding: 0 4px 0 0; text-align: center; vertical-align: middle; }
.matrix th[scope=row] { min-width: 0; white-space: nowrap; text-align: left; } .matrix th { min-width: 0; }
.matrix td { padding: 4px 1px; min-width: 2.1em; border: 2px solid var(--card); overflow-wrap: normal; }
.matrix .plus { background: color-mix(in srgb, var(--accent) var(--w), transparent); }
.matrix .minus { background: color-mix(in srgb, var(--warm) var(--w), transparent); }
.matrix .largest { box-shadow: inset 0 0 0 1.5px var(--ink); font-weight: 650; }
.scale { display: flex; gap: 8px; align-items: center; margin-top: 8px; font-size: 12px; }
.scale i { height: 10px; width: 160px; border-radius: 3px; background: linear-gradient(90deg,
  color-mix(in srgb, var(--warm) 75%, transparent), transparent,
  color-mix(in srgb, var(--accent) 75%, transparent)); }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.strips { display: grid; gap: 16px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 340px), 1fr)); }
.strip { margin: 0; min-width: 0; }
.strip > div { display: flex; gap: 4px; align-items: end; } .strip > div > div { flex: 1 1 0; min-width: 0; }
.strip h3 { font-size: .75rem; font-weight: 400; color: var(--muted); margin: 0 0 2px; line-height: 1.2; }
.strip img { display: block; width: 100%; height: auto; border-radius: 4px; }
.strip figcaption { font-size: .85rem; margin-top: 4px; overflow-wrap: anywhere; }
.strip span { color: var(--muted); }
table { border-collapse: collapse; width: 100%; font-size: .88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 650; padding-bottom: 4px; }
th, td { text-align: left; padding: 3px 14px 3px 0; border-top: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
tr:first-child > * { border-top: 0; }
th { width: 1%; min-width: 8em; overflow-wrap: break-word; font-weight: 400; color: var(--muted); }
.log th, .log td { width: auto; min-width: 0; text-align: right; white-space: nowrap; }
.compared th, .compared td { width: auto; min-width: 0; text-align: right; white-space: nowrap; }
.compared th:first-child { text-align: left; color: var(--ink); position: sticky; left: 0;
  background: var(--card); }
.compared .failed th:first-child { color: var(--warm); }
.figure svg { min-width: 600px; }
.notes { padding-left: 32px; overflow-wrap: anywhere; }
.behind .log :is(th, td):first-child { text-align: left; }
.scores th, .scores td { white-space: nowrap; width: 1%; vertical-align: middle; }
.scores .share { width: 99%; }
.track { position: relative; }
.track::after { content: ""; position: absolute; top: -3px; bottom: -3px; left: var(--chance);
  border-left: 2px solid var(--warm); }
.bar { height: 14px; border-radius: 3px; background: var(--accent); min-width: 2px; opacity: .85; }
.track i { position: absolute; top: 6px; height: 2px; background: var(--ink); }
.scores small { display: block; color: var(--muted); }
.plot { margin: 12px 0; } .plot img { display: block; max-width: 100%; height: auto; }
.plot figcaption { font-size: .85rem; color: var(--muted); margin-top: 6px; }
.confusion th[scope=col] { vertical-align: bottom; }
.confusion th[scope=col] span { writing-mode: vertical-rl; }
.bar.cls { background: var(--muted); }
.bar.old { background: repeating-linear-gradient(45deg, var(--line) 0 4px, transparent 4px 8px); }
.subtitle { margin: 0 0 16px; max-width: none; }
.config td:last-child { color: var(--muted); } .config .changed > * { color: var(--ink); font-weight: 600; }
.config .changed > th { box-shadow: -8px 0 0 var(--card), -11px 0 0 var(--accent); }
summary { cursor: pointer; margin-top: 16px; color: var(--muted); }
@media (max-width: 600px) { main { padding: 16px 10px 32px; } .card { padding: 12px; }
  .numbers { grid-template-columns: 1fr 1fr; gap: 10px; }
  .scores tr, .config tr { display: grid; grid-template-columns: auto 1fr auto; gap: 0 8px; padding: 4px 0; }
  .config tr { grid-template-columns: 1fr 1fr; } .plot img { max-width: max(100%, 860px); }
  .scores tr > *, .config tr > * { width: auto; border: 0; padding: 0; align-self: center; }
  .scores tr { grid-template-columns: 1fr auto; }
  .scores th, .scores td:nth-child(2), .config th { grid-column: 1 / -1; white-space: normal; } }
"""
