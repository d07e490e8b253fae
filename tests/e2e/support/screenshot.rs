//! Screenshots of pages, for the README and for the check that a page fits into its window.
//! `scripts/screenshots` makes the small versions for the README.

use crate::browser::{Browser, Window};
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// The size of a screenshot in CSS pixels, which are also pixels of the screen. Small enough for a
/// README, and wide enough for the desktop layout of a page.
const SCREENSHOT_WIDTH: u32 = 960;
const SCREENSHOT_HEIGHT: u32 = 640;

impl Browser {
    /// Shrinks the window, checks the accessibility of the page, and writes a screenshot to
    /// `NAME.png` in the folder `screenshots` of cargo's target folder.
    ///
    /// # Panics
    ///
    /// If the page is not [accessible](Self::assert_accessible), the screenshot has another size, or
    /// the page does not fit into it.
    pub async fn screenshot(&self, name: &str) {
        // A window is larger than its viewport. The difference depends on the browser.
        let [width, height] = self.pixels(["outerWidth - innerWidth", "outerHeight - innerHeight"]).await;
        let resized = self.client().set_window_size(SCREENSHOT_WIDTH + width, SCREENSHOT_HEIGHT + height).await;
        resized.expect("the window can be resized");
        self.eval("document.documentElement.style.scrollbarWidth = 'none'").await;
        self.assert_accessible().await;

        let (file, image) = self.save_screenshot("", name).await;
        assert_eq!(size(&image), Some((SCREENSHOT_WIDTH, SCREENSHOT_HEIGHT)), "{}", file.display());
        self.assert_width(SCREENSHOT_WIDTH, &file).await;
    }

    /// Asserts that the page fits into the width of the window, without horizontal scrolling.
    ///
    /// Also writes a screenshot to `NAME-WIDTH.png`, in `widths` in the folder of the
    /// [screenshots](Self::screenshot).
    ///
    /// # Panics
    ///
    /// If the page is too wide, or the window has another width.
    pub async fn assert_fits(&self, name: &str, window: Window) {
        let width = window.width();
        let (file, _) = self.save_screenshot("widths", &format!("{name}-{width}")).await;
        self.assert_width(width, &file).await;
    }

    /// Asserts that the page needs no more than this width. A failure names the screenshot.
    async fn assert_width(&self, width: u32, screenshot: &Path) {
        let page = ["innerWidth", "document.documentElement.scrollWidth", "document.documentElement.clientWidth"];
        let [inner, needed, available] = self.pixels(page).await;
        // A phone zooms out of a page that is too wide, and its `innerWidth` grows.
        assert_eq!(inner, width, "the page is too wide for the phone: {}", screenshot.display());
        assert!(needed <= available, "the page needs {needed} of {available} pixels: {}", screenshot.display());
    }

    /// Saves a screenshot after the page has drawn all its changes.
    async fn save_screenshot(&self, subfolder: &str, name: &str) -> (PathBuf, Vec<u8>) {
        self.eval("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))").await;
        let image = self.client().screenshot().await.expect("the browser takes screenshots");
        let file = folder(subfolder).join(format!("{name}.png"));
        fs::write(&file, &image).expect("the target folder is writable");
        (file, image)
    }

    /// Evaluates expressions that are numbers of pixels.
    async fn pixels<const N: usize>(&self, expressions: [&str; N]) -> [u32; N] {
        let pixels = self.eval(&format!("[{}]", expressions.join(", "))).await;
        let pixels: Vec<u32> = serde_json::from_value(pixels).expect("numbers of pixels");
        pixels.try_into().expect("one number for each expression")
    }
}

/// Returns a folder in cargo's target folder. A test runs in `…/debug/deps`.
fn folder(subfolder: &str) -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    let folder =
        test.ancestors().nth(3).expect("a test is inside the target folder").join("screenshots").join(subfolder);
    fs::create_dir_all(&folder).expect("the target folder is writable");
    folder
}

/// Returns the width and height of a PNG: the content of its first chunk, which begins at byte 16.
fn size(image: &[u8]) -> Option<(u32, u32)> {
    let (width, rest) = image.get(16..)?.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}
