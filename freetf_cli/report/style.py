"""The look of a page: colours for light and dark, type, and how it folds on a phone and on paper."""

PAGE_CSS = """
:root {
  --page: #fdfdfb; --panel: #ffffff; --ink: #1d2024; --soft: #5d636b; --faint: #b9bdc3; --rule: #e6e6e1;
  --ce: #8b2f7f; --kl: #0b7285; --length: #b45f06; --floor: #2b7a3d; --plain: #48566a;
  --blue: #2b62b8; --blue-fill: #f5f8fe; --green: #2b7a3d; --green-fill: #f4faf5; --noise: #c22f2f; --target: #8b2f7f;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, serif;
  --sans: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace;
  color-scheme: light dark;
}
@media (prefers-color-scheme: dark) { :root {
  --page: #15171a; --panel: #1b1e22; --ink: #e4e5e7; --soft: #9aa1aa; --faint: #4d545d; --rule: #2b2f35;
  --ce: #d98fd0; --kl: #56c3d6; --length: #e3a34f; --floor: #6fc282; --plain: #a7b4c6;
  --blue: #7aa7f0; --blue-fill: #181d27; --green: #6fc282; --green-fill: #172019; --noise: #f07b74; --target: #e79adf;
} }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 var(--sans); -webkit-text-size-adjust: 100% }
main { max-width: 69rem; margin: 0 auto; padding: 3rem 1.5rem 4rem }
h1, h2 { font-family: var(--serif); font-weight: 600; line-height: 1.2; overflow-wrap: anywhere }
h1 { font-size: 2.1rem; margin: .1rem 0 .4rem }
h2 { font-size: 1.3rem; margin: 2.8rem 0 1rem; padding-top: .9rem; border-top: 1px solid var(--rule) }
h3 { font-size: .95rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere }
p { max-width: 44rem }
.kicker { margin: 0; color: var(--soft); font-size: .9rem }
.about { font-family: var(--serif); font-size: 1.1rem; margin: 0 0 .2rem; overflow-wrap: anywhere }
.data, .reading, .empty { color: var(--soft); margin: .2rem 0; font-size: .93rem; overflow-wrap: anywhere }
.status { margin-left: .5rem; padding: .05rem .55rem; border: 1px solid; border-radius: 1rem; font-size: .8rem }
.status.good { color: var(--floor) } .status.bad { color: var(--noise) } .status.open { color: var(--length) }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 14rem));
  gap: .2rem 1.6rem; margin: 1.8rem 0 .9rem }
.card { display: flex; flex-direction: column; border-top: 3px solid var(--edge); padding: .45rem 0 .6rem;
  font-variant-numeric: tabular-nums }
.card .name { color: var(--edge); font-weight: 600; font-size: .9rem }
.card .value { font-size: 2rem; line-height: 1.2; font-family: var(--serif) }
.card .unit, .card .nats { color: var(--soft); font-size: .82rem }
.k-ce { --edge: var(--ce) } .k-kl { --edge: var(--kl) } .k-length { --edge: var(--length) } .k-floor { --edge: var(--floor) }
.small { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr));
  gap: 1.6rem 2rem; margin-top: 2rem; max-width: 100% }
.small > div { max-width: 34rem }
.narrow { display: none }
.scroll { overflow-x: auto; margin: .3rem 0 1rem }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .28rem 1.4rem .28rem 0; vertical-align: top; white-space: nowrap }
th:last-child, td:last-child { padding-right: 0 }
th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--faint) }
td { border-bottom: 1px solid var(--rule) }
tfoot td { font-weight: 600; border-bottom: 0; border-top: 1px solid var(--faint) }
.n { text-align: right }
dl { margin: 0 0 1rem; font-size: .93rem }
dl div { display: grid; grid-template-columns: 10rem 1fr; gap: .2rem 1rem; padding: .12rem 0 }
dt { color: var(--soft) } dd { margin: 0; overflow-wrap: anywhere }
.pair { display: flex; flex-wrap: wrap; gap: 0 4rem; align-items: flex-start } .pair > * { min-width: 0; max-width: 100% }
.tables { columns: 3 17rem; column-gap: 2.5rem } .tables > div { break-inside: avoid; padding-bottom: .4rem } .tables h3 { margin-top: 0 }
.tables td:first-child { color: var(--soft) } .tables td:last-child { text-align: right } .tables table { width: 100% }
.tables td { white-space: normal; overflow-wrap: anywhere }
.command { overflow-x: auto; font: .85rem/1.5 var(--mono); background: var(--panel);
  border: 1px solid var(--rule); border-radius: 6px; padding: .6rem .8rem; margin: 0 0 1rem }
@media (max-width: 640px) {
  main { padding: 1.5rem 1rem 3rem } h1 { font-size: 1.7rem } .wide { display: none } .narrow { display: block }
  .cards { grid-template-columns: 1fr 1fr } .card .value { font-size: 1.6rem }
  dl div { grid-template-columns: 1fr; gap: 0; padding: .25rem 0 }
}
@media print {
  :root { --page: #fff; --ink: #000; --soft: #444; --rule: #ccc } main { max-width: none; padding: 0 } body { font-size: 10pt }
  .box pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 8pt } .scroll { overflow: visible }
  section { break-inside: auto } h2, h3 { break-after: avoid } svg, tr { break-inside: avoid }
  .wide { display: block } .narrow { display: none }
}
"""
