//! The check of pages with axe-core, which finds faults such as low contrast and missing labels.

use crate::browser::Browser;
use serde_json::Value;
use std::{env, fs};

/// Runs axe-core with the light and with the dark colours of the page, and returns the violations.
///
/// No browser changes the preferred scheme through WebDriver. So the script enables the rules for
/// dark colours.
const CHECK: &str = "
    const dark = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules])
        .filter((rule) => rule instanceof CSSMediaRule && rule.conditionText.includes('prefers-color-scheme: dark'));
    const queries = dark.map((rule) => rule.media.mediaText);
    const root = document.documentElement.style;
    async function run(scheme) {
        const { violations } = await axe.run({ resultTypes: ['violations'] });
        return violations.map((violation) => ({ scheme, ...violation }));
    }
    const found = await run('light');
    root.colorScheme = 'dark';
    dark.forEach((rule) => { rule.media.mediaText = 'all'; });
    found.push(...await run('dark'));
    root.colorScheme = '';
    dark.forEach((rule, n) => { rule.media.mediaText = queries[n]; });
    return found;
";

impl Browser {
    /// Asserts that axe-core finds no fault in the page as it is now.
    ///
    /// # Panics
    ///
    /// If the page violates any rule. The message has the rule, its help, and the elements.
    pub async fn assert_accessible(&self) {
        self.client().execute(&axe(), Vec::new()).await.expect("axe-core loads");
        let violations = self.eval(&format!("(async () => {{ {CHECK} }})()")).await;
        let violations = violations.as_array().expect("the script returns a list");
        let violations: Vec<_> = violations.iter().map(describe).collect();
        assert!(violations.is_empty(), "the page is not accessible:\n{}", violations.join("\n"));
    }
}

/// Returns the source of axe-core, which `tests/e2e/clients/install` has put into cargo's target
/// folder. A test runs in `…/debug/deps`.
fn axe() -> String {
    let test = env::current_exe().expect("a test has a path");
    let target = test.ancestors().nth(3).expect("a test is inside the target folder");
    let file = target.join("e2e-clients/node/node_modules/axe-core/axe.min.js");
    fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}. Run scripts/test, which installs it", file.display()))
}

/// Returns the rule, its help, the colour scheme, and each element with the reason.
fn describe(violation: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let [id, help, scheme] = ["id", "help", "scheme"].map(|key| text(&violation[key]));
    let mut lines = format!("{id}: {help} ({scheme})");
    for node in violation["nodes"].as_array().into_iter().flatten() {
        lines += &format!("\n  {}: {}", node["target"], text(&node["failureSummary"]));
    }
    lines
}
