//! The page around charts and tables: one file, no network, light, dark and on paper.

/// `text` so that a browser shows it and nothing else.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Control characters are not allowed in HTML, and marks that turn the direction of writing
            // could show a name as another.
            '\n' | '\t' => escaped.push(character),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A page with `title` (plain text) and `body` (HTML).
pub(super) fn page(title: &str, body: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{}</title>\n<style>{STYLE}</style>\n</head>\n\
         <body>\n<main>\n{body}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n",
        escape(title)
    )
}

/// The button that turns light and dark, for the head of a page.
pub(super) const THEME_BUTTON: &str = "<button id=\"theme\" type=\"button\" title=\"Light or dark\" aria-label=\"Light or dark\">◐</button>";

/// Tiles of headline figures: label, value, and a remark below.
pub(super) fn tiles(tiles: &[(&str, String, String)]) -> String {
    let tiles: String = tiles
        .iter()
        .map(|(label, value, remark)| {
            format!(
                "<div><dt>{}</dt><dd>{}<small>{}</small></dd></div>",
                escape(label),
                escape(value),
                escape(remark)
            )
        })
        .collect();
    format!("<dl class=\"tiles\">{tiles}</dl>\n")
}

/// A table of plain text; the first `n_left` columns stand to the left.
pub(super) fn table(header: &[String], rows: &[Vec<String>], n_left: usize) -> String {
    let cells = |cells: &[String], tag: &str| -> String {
        let one = |(index, cell): (usize, &String)| {
            let class = if index < n_left { " class=\"left\"" } else { "" };
            format!("<{tag}{class}>{}</{tag}>", escape(cell))
        };
        cells.iter().enumerate().map(one).collect()
    };
    let body: String = rows.iter().map(|row| format!("<tr>{}</tr>\n", cells(row, "td"))).collect();
    format!(
        "<div class=\"scroll\"><table><thead><tr>{}</tr></thead>\n<tbody>{body}</tbody></table></div>\n",
        cells(header, "th")
    )
}

/// Text that can be folded away.
pub(super) fn details(summary: &str, text: &str) -> String {
    format!(
        "<details><summary>{}</summary><pre>{}</pre></details>\n",
        escape(summary),
        escape(text)
    )
}

/// Colours: Okabe and Ito's, which colour-blind readers can tell apart, lighter ones on dark ground.
const STYLE: &str = "
:root{color-scheme:light;--bg:#f6f7f9;--card:#fff;--ink:#1a1d21;--soft:#5b6470;--line:#dfe3e8;--hover:#00000012;
--k0:#0072b2;--k1:#d55e00;--k2:#009e73;--k3:#b0548a;--k4:#c98a00;--k5:#3a9bd9;--k6:#6b7480;--warn:#8a4b00;--warnbg:#fff3e0}
@media (prefers-color-scheme:dark){:root:not([data-theme=light]){color-scheme:dark;--bg:#14171b;--card:#1d2126;--ink:#e8eaed;--soft:#a0a9b4;--line:#333a42;--hover:#ffffff14;
--k0:#5ab4ee;--k1:#ff8f4d;--k2:#3ecfa3;--k3:#e39ac6;--k4:#f0bd3f;--k5:#9ad5ff;--k6:#98a2ad;--warn:#ffc27a;--warnbg:#3a2c18}}
:root[data-theme=dark]{color-scheme:dark;--bg:#14171b;--card:#1d2126;--ink:#e8eaed;--soft:#a0a9b4;--line:#333a42;--hover:#ffffff14;
--k0:#5ab4ee;--k1:#ff8f4d;--k2:#3ecfa3;--k3:#e39ac6;--k4:#f0bd3f;--k5:#9ad5ff;--k6:#98a2ad;--warn:#ffc27a;--warnbg:#3a2c18}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,\"Segoe UI\",Roboto,\"Noto Sans\",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
header{display:flex;gap:16px;align-items:flex-start;justify-content:space-between}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:17px;margin:34px 0 10px}
p{margin:0 0 8px;max-width:80ch}
.soft,figcaption span,small{color:var(--soft)}
button{flex:none;font:inherit;color:var(--ink);background:var(--card);border:1px solid var(--line);border-radius:8px;padding:4px 11px;cursor:pointer}
.warn{background:var(--warnbg);color:var(--warn);border-radius:8px;padding:8px 12px;max-width:none}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:20px 0 0}
.tiles div,figure,details,.scroll{background:var(--card);border:1px solid var(--line);border-radius:10px}
.tiles div{padding:11px 14px}
dt{color:var(--soft);font-size:13px}
dd{margin:0;font-size:22px;font-weight:600;line-height:1.25;overflow-wrap:anywhere}
small{display:block;font-size:12.5px;font-weight:400;margin-top:3px;line-height:1.35}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(430px,100%),1fr));gap:14px}
figure{margin:0;padding:12px 14px 8px;min-width:0}
.after{margin-top:14px}
figcaption{font-size:13.5px;line-height:1.4;margin-bottom:4px}
svg{display:block;width:100%;height:auto;overflow:visible}
.none{color:var(--soft);text-align:center;padding:64px 20px;margin:0 auto}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:12.5px;color:var(--soft);margin:2px 0 4px}
.legend span{display:inline-flex;align-items:center;gap:6px;overflow-wrap:anywhere}
.legend i{width:16px;height:0;border-top:3px solid var(--c);flex:none}
.legend .d1 i{border-top-style:dashed}.legend .d2 i{border-top-style:dotted}.legend .d3 i{border-top-style:double}
.c0{--c:var(--k0)}.c1{--c:var(--k1)}.c2{--c:var(--k2)}.c3{--c:var(--k3)}.c4{--c:var(--k4)}.c5{--c:var(--k5)}.c6{--c:var(--k6)}
.t{font-size:11.5px;fill:var(--soft)}.m{text-anchor:middle}.e{text-anchor:end}
.g{stroke:var(--line);stroke-width:1;fill:none}.z{stroke:var(--soft);stroke-opacity:.6}
.l{stroke:var(--c);stroke-width:2;fill:none;stroke-linejoin:round;stroke-linecap:round}
.l.d1{stroke-dasharray:7 5}.l.d2{stroke-dasharray:1 5}.l.d3{stroke-dasharray:9 4 2 4}
.p,.b{fill:var(--c)}.a{fill:var(--c);fill-opacity:.16}
.h{fill:transparent}.h:hover{fill:var(--hover)}.b:hover{stroke:var(--ink);stroke-width:1}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}
thead th{border-top:0;color:var(--soft);font-weight:600}
.left{text-align:left}
details{margin-top:10px;padding:8px 14px}
summary{cursor:pointer}
pre,code{font:12.5px/1.5 ui-monospace,\"SF Mono\",Menlo,Consolas,\"Noto Sans Mono\",monospace}
pre{overflow-x:auto;margin:8px 0;white-space:pre-wrap;overflow-wrap:anywhere}
@media print{:root,:root[data-theme=dark]{color-scheme:light;--bg:#fff;--card:#fff;--ink:#000;--soft:#444;--line:#ccc}
main{max-width:none;padding:0}button{display:none}figure,.tiles div,tr{break-inside:avoid}.charts{grid-template-columns:1fr 1fr}h2{break-after:avoid}}
";

const SCRIPT: &str = "
(function(){var root=document.documentElement,dark=matchMedia('(prefers-color-scheme: dark)');
var button=document.getElementById('theme');
if(button)button.onclick=function(){var now=root.dataset.theme||(dark.matches?'dark':'light');
root.dataset.theme=now==='dark'?'light':'dark';};
addEventListener('beforeprint',function(){document.querySelectorAll('details').forEach(function(d){d.open=true});});
})();
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_stays_text() {
        let hostile = "<script>alert('x')</script> & \"quoted\"\u{0}\u{202e}";
        let escaped = escape(hostile);
        assert!(!escaped.contains(['<', '>', '"', '\'', '\u{0}', '\u{202e}']), "{escaped}");
        let page = page(hostile, &table(&[hostile.to_owned()], &[vec![hostile.to_owned()]], 1));
        assert!(!page.contains("alert('"));
        assert_eq!(page.matches("<script>").count(), 1, "the page's own");
        for address in ["http:", "https:", "//", "@import", "url("] {
            assert!(!STYLE.contains(address) && !SCRIPT.contains(address), "{address}");
        }
    }
}
