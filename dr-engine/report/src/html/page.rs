//! The page: escaping, tables, and the one style sheet.

use std::fmt::Write;

use chrono::{DateTime, Utc};

use crate::{Check, Moment};

pub(super) const NOT_MEASURED: &str = "not measured";
pub(super) const NOT_GIVEN: &str = "not given";

const STYLE: &str = "\
:root{--ink:#1b2430;--soft:#5a6675;--line:#d5dbe3;--paper:#fff;--tint:#f4f6f9;--good:#1d6b3f;\
--good-tint:#e5f3ea;--bad:#9c1f1f;--bad-tint:#fbe9e7;--warn:#7a5200;--warn-tint:#fdf3dc;--blue:#24588f}\
*{box-sizing:border-box}\
body{margin:0;background:#e9edf2;color:var(--ink);font:15px/1.5 'Segoe UI',system-ui,-apple-system,\
'Liberation Sans',Arial,sans-serif}\
main{max-width:1060px;margin:24px auto;background:var(--paper);padding:44px 56px 56px;\
box-shadow:0 1px 4px rgba(20,30,50,.18)}\
header{border-bottom:3px solid var(--ink);padding-bottom:18px;margin-bottom:22px}\
.kicker{margin:0;color:var(--soft);text-transform:uppercase;letter-spacing:.12em;font-size:12px}\
h1{font-size:30px;line-height:1.2;margin:4px 0 6px}\
h2{font-size:18px;margin:38px 0 10px;padding-bottom:5px;border-bottom:1px solid var(--line)}\
h2 .no{color:var(--soft);font-weight:400;display:inline-block;min-width:1.9em}\
h3{font-size:14px;margin:20px 0 6px}p{margin:6px 0}\
.lead{display:flex;justify-content:space-between;gap:24px;align-items:flex-start}\
.badge{flex:none;padding:9px 20px;border:2px solid;border-radius:4px;font-size:22px;font-weight:700;\
letter-spacing:.05em;text-transform:uppercase}\
.badge small{display:block;font-size:11px;letter-spacing:.05em;font-weight:400}\
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}\
.badge.good{background:var(--good-tint)}.badge.bad{background:var(--bad-tint)}\
.badge.warn{background:var(--warn-tint)}\
.cause{border-left:4px solid var(--bad);background:var(--bad-tint);padding:10px 16px;margin:16px 0;\
white-space:pre-wrap;overflow-wrap:anywhere}\
.figures{display:grid;grid-template-columns:repeat(4,1fr);gap:12px;margin:18px 0 6px}\
.figure{border:1px solid var(--line);border-top:4px solid var(--soft);padding:10px 14px;background:var(--tint)}\
.figure.good{border-top-color:var(--good)}.figure.bad{border-top-color:var(--bad)}\
.figure b{display:block;font-size:24px;line-height:1.25;color:var(--ink)}\
.figure .of{color:var(--soft);font-size:13px}.figure .name{font-size:12px;color:var(--soft);\
text-transform:uppercase;letter-spacing:.07em}\
table{border-collapse:collapse;width:100%;margin:8px 0 14px;font-size:14px}\
th,td{text-align:left;vertical-align:top;padding:5px 10px 5px 0;border-bottom:1px solid var(--line);\
overflow-wrap:anywhere;min-width:6.2em}\
thead th{color:var(--soft);font-size:12px;text-transform:uppercase;letter-spacing:.04em;\
border-bottom:2px solid var(--line);overflow-wrap:normal}\
tbody th{font-weight:600}table.facts th{width:230px;color:var(--soft);font-weight:400}\
td.num,th.num{text-align:right;font-variant-numeric:tabular-nums;padding-right:14px}\
.none{color:var(--soft);font-style:italic}\
code{font:12.5px/1.45 'DejaVu Sans Mono',Consolas,monospace;overflow-wrap:anywhere}\
ul{margin:4px 0;padding-left:18px}svg{display:block;width:100%;height:auto;margin:10px 0}\
svg text{font-family:inherit}\
footer{margin-top:40px;padding-top:12px;border-top:1px solid var(--line);color:var(--soft);font-size:12px}\
.sign{display:grid;grid-template-columns:repeat(3,1fr);gap:28px;margin-top:14px}\
.sign div{border-top:1px solid var(--ink);padding-top:4px;margin-top:34px;font-size:13px}\
@media(max-width:760px){main{padding:20px}.figures,.sign{grid-template-columns:1fr 1fr}}\
@media print{body{background:#fff;font-size:11pt}main{margin:0;padding:0;max-width:none;box-shadow:none}\
h2{break-after:avoid}tr,svg,.figure{break-inside:avoid}a{color:inherit;text-decoration:none}}\
@page{margin:18mm 16mm}";

/// Milliseconds as people read them: `40 ms`, `12.3 s`, `15 min`, `4 h 5 min`. Rounded up, so that
/// nothing looks smaller than it was.
#[must_use]
pub fn duration(ms: u64) -> String {
    match ms {
        0..100 => format!("{ms} ms"),
        100..=59_900 => {
            let tenths = ms.div_ceil(100);
            format!("{}.{} s", tenths / 10, tenths % 10)
        }
        59_901..=3_599_000 => {
            let seconds = ms.div_ceil(1000);
            match seconds % 60 {
                0 => format!("{} min", seconds / 60),
                rest => format!("{} min {rest} s", seconds / 60),
            }
        }
        _ => {
            let minutes = ms.div_ceil(60_000);
            match minutes % 60 {
                0 => format!("{} h", minutes / 60),
                rest => format!("{} h {rest} min", minutes / 60),
            }
        }
    }
}

pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

pub(super) fn time(at: DateTime<Utc>) -> String {
    at.format("%Y-%m-%d %H:%M:%S%.3f UTC").to_string()
}

/// A cell's content that is HTML already.
pub(super) fn none(word: &str) -> String {
    format!("<span class=none>{word}</span>")
}

pub(super) fn given(value: Option<&str>) -> String {
    value.map_or_else(|| none(NOT_GIVEN), escape)
}

pub(super) fn measured(value: Option<String>) -> String {
    value.map_or_else(|| none(NOT_MEASURED), |value| escape(&value))
}

pub(super) fn listed(values: &[String], nothing: &str) -> String {
    match values {
        [] => none(nothing),
        [one] => escape(one),
        many => {
            let items: String = many
                .iter()
                .map(|value| format!("<li>{}</li>", escape(value)))
                .collect();
            format!("<ul>{items}</ul>")
        }
    }
}

pub(super) fn code(value: &str) -> String {
    format!("<code>{}</code>", escape(value))
}

pub(super) fn judged(passed: Option<bool>, yes: &str, no: &str) -> String {
    match passed {
        Some(true) => format!("<span class=good>✓ {yes}</span>"),
        Some(false) => format!("<span class=bad>✗ {no}</span>"),
        None => none(NOT_MEASURED),
    }
}

pub(super) fn moment(moment: Option<Moment>) -> String {
    moment.map_or_else(|| none(NOT_MEASURED), |moment| time(moment.at))
}

/// A page that is being written.
pub(super) struct Page {
    text: String,
}

impl Page {
    pub(super) fn new(title: &str) -> Self {
        let title = escape(title);
        Self {
            text: format!(
                "<!DOCTYPE html>\n<html lang=en>\n<head><meta charset=utf-8>\
                 <meta name=viewport content=\"width=device-width,initial-scale=1\">\
                 <title>{title}</title><style>{STYLE}</style></head>\n<body><main>\n"
            ),
        }
    }

    pub(super) fn raw(&mut self, html: &str) {
        self.text.push_str(html);
        self.text.push('\n');
    }

    pub(super) fn section(&mut self, number: &str, title: &str) {
        let (number, title) = (escape(number), escape(title));
        self.raw(&format!("<h2><span class=no>{number}</span>{title}</h2>"));
    }

    pub(super) fn subsection(&mut self, title: &str) {
        self.raw(&format!("<h3>{}</h3>", escape(title)));
    }

    pub(super) fn paragraph(&mut self, text: &str) {
        self.raw(&format!("<p>{}</p>", escape(text)));
    }

    /// Names and values; the values are HTML.
    pub(super) fn facts(&mut self, facts: &[(&str, String)]) {
        self.text.push_str("<table class=facts><tbody>");
        for (name, value) in facts {
            let _ = write!(
                self.text,
                "<tr><th scope=row>{}</th><td>{value}</td></tr>",
                escape(name)
            );
        }
        self.raw("</tbody></table>");
    }

    /// A table; cells are HTML; columns whose name begins with `#` hold numbers.
    pub(super) fn table(&mut self, header: &[&str], rows: &[Vec<String>], nothing: &str) {
        if rows.is_empty() {
            self.raw(&format!("<p>{}</p>", none(nothing)));
            return;
        }
        self.text.push_str("<table><thead><tr>");
        for name in header {
            let class = if name.starts_with('#') {
                " class=num"
            } else {
                ""
            };
            let name = escape(name.trim_start_matches('#'));
            let _ = write!(self.text, "<th scope=col{class}>{name}</th>");
        }
        self.text.push_str("</tr></thead><tbody>");
        for row in rows {
            self.text.push_str("<tr>");
            for (cell, name) in row.iter().zip(header) {
                let class = if name.starts_with('#') {
                    " class=num"
                } else {
                    ""
                };
                let _ = write!(self.text, "<td{class}>{cell}</td>");
            }
            self.text.push_str("</tr>");
        }
        self.raw("</tbody></table>");
    }

    pub(super) fn checks(&mut self, checks: &[Check]) {
        let rows: Vec<Vec<String>> = checks
            .iter()
            .map(|check| {
                vec![
                    escape(&check.group),
                    escape(&check.what),
                    judged(check.passed, "as it must be", "NOT as it must be"),
                    escape(&check.detail),
                ]
            })
            .collect();
        self.table(
            &["Kind", "Looked at", "Result", "Seen"],
            &rows,
            NOT_MEASURED,
        );
    }

    pub(super) fn finish(mut self, footer: &str) -> String {
        self.raw(&format!("<footer>{}</footer>", escape(footer)));
        self.text.push_str("</main></body></html>\n");
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_rounded_up_and_never_change_their_unit_twice() {
        let shown = [
            1, 99, 100, 250, 59_900, 59_901, 90_000, 900_000, 3_599_001, 14_700_000,
        ];
        let expected = [
            "1 ms",
            "99 ms",
            "0.1 s",
            "0.3 s",
            "59.9 s",
            "1 min",
            "1 min 30 s",
            "15 min",
            "1 h",
            "4 h 5 min",
        ];
        for (ms, text) in shown.into_iter().zip(expected) {
            assert_eq!(duration(ms), text, "{ms}");
        }
    }

    #[test]
    fn whatever_a_service_said_cannot_become_markup() {
        assert_eq!(escape("<a href='x'>&"), "&lt;a href=&#39;x&#39;&gt;&amp;");
    }
}
