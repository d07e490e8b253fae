//! Pictures of pages, from which `scripts/screenshots` makes those of the README, and whether pages fit into their windows.

use crate::browser::{Browser, Window};
use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// In CSS pixels, of which the screen has one for each: small enough for a README, and wide enough for a page of a desk.
const WIDTH: u32 = 960;
const HEIGHT: u32 = 640;

impl Browser {
    /// Writes a picture of what is to be seen into the folder `screenshots` beside what cargo builds, as `NAME.png`.
    ///
    /// The window is made small for it.
    ///
    /// # Panics
    ///
    /// If the browser takes none, or takes one of another size, or the page does not fit into it.
    pub async fn screenshot(&self, name: &str) {
        // A window is larger than what it shows, by how much is the browser's business.
        let [width, height] = self.pixels(["outerWidth - innerWidth", "outerHeight - innerHeight"]).await;
        let resized = self.client().set_window_size(WIDTH + width, HEIGHT + height).await;
        resized.expect("its window can be resized");
        self.eval("document.documentElement.style.scrollbarWidth = 'none'").await;

        let (file, image) = self.picture("", name).await;
        assert_eq!(size(&image), Some((WIDTH, HEIGHT)), "{}", file.display());
        self.fits_into(WIDTH, &file).await;
    }

    /// Asserts that Chromium shows the page in a window of this width without scrolling sideways.
    ///
    /// What is to be seen is left in the folder `widths` of that of the [screenshots](Self::screenshot), as
    /// `NAME-WIDTH.png`.
    ///
    /// # Panics
    ///
    /// If the page is too wide, or the window is another one.
    pub async fn fits(&self, name: &str, window: Window) {
        let width = window.width();
        let (file, _) = self.picture("widths", &format!("{name}-{width}")).await;
        self.fits_into(width, &file).await;
    }

    /// The picture is for whoever looks into why it does not.
    async fn fits_into(&self, width: u32, picture: &Path) {
        let page = ["innerWidth", "document.documentElement.scrollWidth", "document.documentElement.clientWidth"];
        let [inner, needed, there] = self.pixels(page).await;
        // A page that is too wide is zoomed out on a phone: there is more room inside of the window then.
        assert_eq!(inner, width, "the page makes the window wider, or it is another one: {}", picture.display());
        assert!(needed <= there, "{needed} of {there} pixels are needed: {}", picture.display());
    }

    /// Takes one when all that the page has changed is drawn.
    async fn picture(&self, subfolder: &str, name: &str) -> (PathBuf, Vec<u8>) {
        self.eval("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))").await;
        let image = self.client().screenshot().await.expect("the browser takes one");
        let file = folder(subfolder).join(format!("{name}.png"));
        fs::write(&file, &image).expect("the target folder can be written to");
        (file, image)
    }

    /// How many each of these expressions is.
    async fn pixels<const N: usize>(&self, expressions: [&str; N]) -> [u32; N] {
        let pixels = self.eval(&format!("[{}]", expressions.join(", "))).await;
        let pixels: Vec<u32> = serde_json::from_value(pixels).expect("numbers of pixels");
        pixels.try_into().expect("one for each")
    }
}

/// A test runs in `…/debug/deps`.
fn folder(subfolder: &str) -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    let folder =
        test.ancestors().nth(3).expect("the folders of cargo are around it").join("screenshots").join(subfolder);
    fs::create_dir_all(&folder).expect("the target folder can be written to");
    folder
}

/// Of a PNG: its first chunk, which begins after 16 bytes, begins with them.
fn size(image: &[u8]) -> Option<(u32, u32)> {
    let (width, rest) = image.get(16..)?.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}
