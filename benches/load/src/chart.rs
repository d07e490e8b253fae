//! The table as a picture: a panel for each row, and a bar for each contestant.

use crate::{
    contestant::Contestant,
    report::{Measured, Spread},
    row::Load,
};
use plotters::{
    prelude::{
        Color, DrawingArea, DrawingAreaErrorKind, IntoDrawingArea, PathElement, RGBColor, Rectangle, SVGBackend, Text,
    },
    style::{BLACK, IntoFont, TextStyle, WHITE},
};
use std::{io, path::Path};

const PANEL: (i32, i32) = (400, 190);
const COLUMNS: usize = 3;
/// The space for titles and names.
const TOP: i32 = 34;
const LEFT: i32 = 150;
const RIGHT: i32 = 62;
const BAR: i32 = 20;

/// The bars of a row.
struct Panel {
    title: String,
    bars: Vec<(Contestant, Spread)>,
    decimals: usize,
}

/// Draws all rows into an SVG file.
pub fn draw(path: &Path, rows: &[Measured<'_>]) -> io::Result<()> {
    let panels: Vec<_> = rows.iter().flat_map(panels).filter(|panel| !panel.bars.is_empty()).collect();
    let (width, height) = (PANEL.0 * COLUMNS as i32, PANEL.1 * panels.len().div_ceil(COLUMNS).max(1) as i32);
    let area = SVGBackend::new(path, (width as u32, height as u32)).into_drawing_area();
    let result = area.fill(&WHITE).and_then(|()| {
        let areas = area.split_evenly((panels.len().div_ceil(COLUMNS).max(1), COLUMNS));
        panels.iter().zip(&areas).try_for_each(|(panel, area)| panel.draw(area))?;
        area.present()
    });
    result.map_err(|error| io::Error::other(error.to_string()))
}

fn panels(row: &Measured<'_>) -> Vec<Panel> {
    let bars = |figure: &dyn Fn(Contestant) -> Option<Spread>| {
        row.columns.iter().filter_map(|&(contestant, _)| Some((contestant, figure(contestant)?))).collect()
    };
    let title = row.row.title;
    let panel = |title: String, bars, decimals| Panel { title, bars, decimals };
    match row.row.load {
        Load::Saturation => vec![panel(
            format!("{title}: million deliveries per CPU second"),
            bars(&|it| row.spread(it, |figures| Some(1000.0 / figures.cpu))),
            1,
        )],
        Load::Idle => vec![
            panel(
                format!("{title}: % of a core, heartbeats"),
                bars(&|it| row.spread(it, |figures| Some(100.0 * figures.server_share))),
                2,
            ),
            panel(
                format!("{title}: KiB of memory each"),
                bars(&|it| row.spread(it, |figures| Some(figures.memory / 1024.0))),
                1,
            ),
        ],
        Load::Reconnect { .. } => Vec::new(),
        _ => vec![panel(title.to_owned(), bars(&|it| row.ratio(it)), 2)],
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as plotters::prelude::DrawingBackend>::ErrorType>>;

impl Panel {
    fn draw<'a>(&self, area: &Area<'a>) -> Drawn<'a> {
        let small = TextStyle::from(("sans-serif", 12).into_font()).color(&BLACK);
        area.draw(&Text::new(self.title.clone(), (10, 12), ("sans-serif", 14).into_font()))?;
        let max = self.bars.iter().map(|(_, spread)| spread.max).fold(f64::MIN_POSITIVE, f64::max);
        let x = |value: f64| LEFT + (f64::from(PANEL.0 - LEFT - RIGHT) * value / max) as i32;
        for (index, (contestant, spread)) in self.bars.iter().enumerate() {
            let top = TOP + index as i32 * BAR;
            let (middle, bottom) = (top + (BAR - 4) / 2, top + BAR - 4);
            area.draw(&Text::new(contestant.name().replace('`', ""), (10, top + 2), small.clone()))?;
            area.draw(&Rectangle::new([(LEFT, top), (x(spread.median), bottom)], color(*contestant).filled()))?;
            area.draw(&PathElement::new([(x(spread.min), middle), (x(spread.max), middle)], BLACK))?;
            let value = format!("{:.*}", self.decimals, spread.median);
            area.draw(&Text::new(value, (x(spread.max) + 5, top + 2), small.clone()))?;
        }
        Ok(())
    }
}

fn color(contestant: Contestant) -> RGBColor {
    match contestant {
        Contestant::Serve => RGBColor(0, 114, 178),
        Contestant::AxumServe | Contestant::Layer => RGBColor(86, 180, 233),
        Contestant::Axum => RGBColor(230, 159, 0),
        _ => RGBColor(170, 170, 170),
    }
}
