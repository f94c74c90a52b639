"""The look of a report: one style sheet for light and dark pages, screens and paper. Private to `report`."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #ffffff; --card: #f5f7f9; --ink: #1c2024; --faint: #555d66; --line: #d9dde2; --link: #0b5fa5;
  --shade: rgb(0 0 0 / 0.18);
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14171a; --card: #1d2226; --ink: #e8eaed; --faint: #b4bac2; --line: #3c434b; --link: #7cc0f4;
    --shade: rgb(0 0 0 / 0.6);
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--ground); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", Arial, sans-serif;
}
header, main { max-width: 62rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.5rem; }
main { padding-bottom: 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; text-wrap: balance; }
h2 {
  font-size: 1.35rem; line-height: 1.25; margin: 3rem 0 0.75rem; padding-top: 1.25rem;
  border-top: 1px solid var(--line);
}
p { max-width: 44rem; margin: 0.75rem 0; }
.subtitle { color: var(--faint); font-size: 1.1rem; margin: 0.5rem 0 0; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--link); outline-offset: 2px;
}
nav ol {
  display: flex; flex-wrap: wrap; gap: 0.25rem 1.25rem; list-style: none; margin: 1.25rem 0 0; padding: 0;
}
code {
  font: 0.9em ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  background: var(--card); padding: 0.1em 0.2em; border-radius: 3px;
}
figure { margin: 1.75rem 0; }
figcaption, caption { color: var(--faint); font-size: 0.9rem; text-align: left; max-width: 44rem; }
figcaption { margin-top: 0.5rem; }
caption { padding-bottom: 0.6rem; }
.scroll { /* shadows at the edges show that there is more to scroll to; the covers hide them at the ends */
  overflow-x: auto;
  background:
    linear-gradient(to right, var(--ground) 30%, transparent) left / 3rem 100% no-repeat local,
    linear-gradient(to left, var(--ground) 30%, transparent) right / 3rem 100% no-repeat local,
    linear-gradient(to right, var(--shade), transparent) left / 1rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shade), transparent) right / 1rem 100% no-repeat scroll;
}
img { display: block; max-width: none; }
table { border-collapse: collapse; font-size: 0.92rem; line-height: 1.4; min-width: 50%; }
th, td { padding: 0.45rem 1.1rem 0.45rem 0; text-align: left; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th {
  font-weight: 600; color: var(--faint); border-bottom: 1.5px solid var(--faint); vertical-align: bottom;
}
tbody th, tbody td { border-bottom: 1px solid var(--line); }
tbody th { font-weight: 600; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
thead .number { white-space: normal; }
.short { white-space: nowrap; }
.words { overflow-wrap: anywhere; white-space: pre-wrap; min-width: 9rem; max-width: 26rem; }
.below { display: block; font-weight: 400; }
.interval { color: var(--faint); }
.rest { color: var(--faint); font-size: 0.9rem; }
.control {
  font: 0.75em ui-monospace, Menlo, Consolas, "Liberation Mono", monospace; color: var(--faint);
  border: 1px solid var(--line); border-radius: 3px; padding: 0 0.25em; unicode-bidi: isolate; direction: ltr;
}
.keys {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(12rem, 1fr)); gap: 0.75rem; margin: 1.5rem 0;
}
.keys > div { background: var(--card); border-radius: 8px; padding: 0.9rem 1.1rem; }
.keys dt { color: var(--faint); font-size: 0.9rem; }
.keys dd { margin: 0; }
.keys .value { font-size: 1.7rem; line-height: 1.25; font-weight: 600; font-variant-numeric: tabular-nums; }
.keys .note { color: var(--faint); font-size: 0.88rem; }
.excerpt { background: var(--card); border-radius: 8px; padding: 0.9rem 1.1rem; }
.excerpt dl { margin: 0; }
.excerpt dt { color: var(--faint); font-size: 0.85rem; font-weight: 600; }
.excerpt dd { margin: 0.15rem 0 0.9rem; white-space: pre-wrap; overflow-wrap: anywhere; max-width: 50rem; }
.excerpt dd:last-child { margin-bottom: 0; }
.excerpt figcaption { margin: 0 0 0.6rem; }
details { margin-top: 0.75rem; }
summary { cursor: pointer; color: var(--link); font-size: 0.9rem; }
dd details, td details, th details { margin: 0; }
.unseen {
  position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap;
}
@media print {
  header, main { max-width: none; }
  nav { display: none; }
  h2 { break-after: avoid; }
  tr, figure, .keys > div { break-inside: avoid; }
}
"""
