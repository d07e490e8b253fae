//! Pictures of pages, from which `scripts/screenshots` makes those of the README.

use crate::browser::Browser;
use std::{env, fs, path::PathBuf};

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
    /// If the browser takes none, or takes one of another size.
    pub async fn screenshot(&self, name: &str) {
        let pixels = async |what: &str| {
            let pixels = self.eval(what).await.as_u64().and_then(|pixels| u32::try_from(pixels).ok());
            pixels.expect("a number of pixels")
        };
        // A window is larger than what it shows, by how much is the browser's business.
        let frame = [pixels("outerWidth - innerWidth").await, pixels("outerHeight - innerHeight").await];
        let resized = self.client().set_window_size(WIDTH + frame[0], HEIGHT + frame[1]).await;
        resized.expect("its window can be resized");
        self.eval("document.documentElement.style.scrollbarWidth = 'none'").await;
        self.eval("new Promise((drawn) => requestAnimationFrame(() => requestAnimationFrame(drawn)))").await;

        let image = self.client().screenshot().await.expect("the browser takes one");
        let file = folder().join(format!("{name}.png"));
        fs::write(&file, &image).expect("the target folder can be written to");
        assert_eq!(size(&image), Some((WIDTH, HEIGHT)), "{}", file.display());
    }
}

/// A test runs in `…/debug/deps`.
fn folder() -> PathBuf {
    let test = env::current_exe().expect("a test has a path");
    let folder = test.ancestors().nth(3).expect("the folders of cargo are around it").join("screenshots");
    fs::create_dir_all(&folder).expect("the target folder can be written to");
    folder
}

/// Of a PNG: its first chunk, which begins after 16 bytes, begins with them.
fn size(image: &[u8]) -> Option<(u32, u32)> {
    let (width, rest) = image.get(16..)?.split_first_chunk()?;
    let (height, _) = rest.split_first_chunk()?;
    Some((u32::from_be_bytes(*width), u32::from_be_bytes(*height)))
}
