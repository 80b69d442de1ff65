"""Messages that once became, or try to become, more than text."""

from __future__ import annotations

OVERLAY = '<label for="tw-much-1" id="tw-much-2" style="position:fixed;inset:0">x</label>'
TRICKS = [
    f"Tildes ~~~ in a line {OVERLAY}",
    f"An open fence ``` in a line {OVERLAY}",
    f"An escaped backtick \\` {OVERLAY} `",
    f"$$ {OVERLAY} $$",
    f"$ {OVERLAY} $",
    f"$\\text{{{OVERLAY}}}$",
    f"```` \n```\n{OVERLAY}\n```\n",
    f"`code over\na line` {OVERLAY}",
    f"```\n{OVERLAY}",
    f"| {OVERLAY} | b |\n|-|-|\n| {OVERLAY} | ` |",
    f"> {OVERLAY}\n\n- {OVERLAY}\n\n# {OVERLAY}\n\n{OVERLAY}\n===",
    f'[x](https://e.org "{OVERLAY}") <https://e.org/{OVERLAY}>',
    f"```{OVERLAY}\nx\n```",
    "<form action=/v1/feedback><input name=x><button>vote</button></form>",
    "<video autoplay src=https://e.org/v.mp4></video><img src=x onerror=alert(1)>",
    "<svg><style><img src=x onerror=alert(1)></style></svg>",
    '<math><annotation-xml encoding="text/html"><form id=x></form></annotation-xml></math>',
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror=alert(1)&gt;'>",
    "<!-- <b> --> <![CDATA[ <b> ]]> <?php ?> <!DOCTYPE html>",
    "[a](javascript:alert(1)) [b](data:text/html,x) [c](vbscript:x) [d](/ops) [e](#tw-votes) <javascript:alert(1)>",
    "[a](JaVaScRiPt:alert(1)) [b](&#106;avascript:alert(1)) [c](java\tscript:x) ![d](javascript:x)",
    "$\\href{javascript:alert(1)}{x}$ $\\style{position:fixed}{x}$ $\\class{tw-vote}{x}$ $\\unicode{41;<b>}$",
    "$\\hspace{-999em}x$ $\\rule{999em}{999em}$ $\\raise{999em}{x}$ $\\colorbox{red}{x}$ $\\verb|<b>|$",
    "$$\\begin{matrix}<b>&</b>\\\\x\\end{matrix}$$ \\[ <form> \\] \\( <input> \\)",
    "```mermaid\ngraph TD; A[<img src=x>]-->B\n%%{init: {'themeCSS': 'url(https://e.org)'}}%%\n```",
    "![p](https://e.org/p.png) [![q](https://e.org/q.png)](https://e.org) ![](https://e.org/r.png)",
    "${alert(1)} {{constructor}} `${x}` \\u0041",
]
