//! Charts as SVG, and the self-contained page that holds them.

use moekit::placement::balance;
use moekit::placement::{ExpertLoad, ModelPlacement};
use plotters::prelude::*;

use crate::error::{CliError, Result};

const WIDTH: u32 = 960;
/// Of ticks and axes.
const LABELS: (&str, i32) = ("sans-serif", 12);
const INK: RGBColor = RGBColor(51, 65, 85);
/// Distinct also for colour-blind readers (Okabe and Ito).
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(120, 120, 120),
];

/// A page without scripts or links: everything is in it.
pub(crate) struct Page {
    title: String,
    body: String,
}

impl Page {
    pub(crate) fn new(title: String) -> Self {
        Self {
            title,
            body: String::new(),
        }
    }

    /// Preformatted text.
    pub(crate) fn text(&mut self, text: &str) {
        self.body += &format!("<pre>{}</pre>\n", escape(text));
    }

    /// A chart of this module.
    pub(crate) fn chart(&mut self, svg: &str) {
        self.body += &format!("<figure>{svg}</figure>\n");
    }

    pub(crate) fn html(&self) -> String {
        let title = escape(&self.title);
        format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title>\n\
             <style>body{{font-family:system-ui,sans-serif;max-width:1000px;margin:2rem auto;color:#0f172a}}\
             pre{{overflow-x:auto;background:#f1f5f9;padding:1rem;border-radius:8px;font-size:12px}}\
             figure{{margin:1.5rem 0}}svg{{max-width:100%;height:auto}}</style></head>\n\
             <body><h1>{title}</h1>\n{}</body></html>\n",
            self.body
        )
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// The load of each rank, `[layers][ranks]`.
pub(crate) fn rank_loads(placement: &ModelPlacement, load: &ExpertLoad) -> Result<Vec<Vec<f64>>> {
    let layers = placement.layers().iter().zip(load.layers());
    layers
        .map(|(layer, load)| Ok(balance::rank_loads(layer, load)?))
        .collect()
}

fn draw<E: std::error::Error + Send + Sync>(
    result: std::result::Result<(), DrawingAreaErrorKind<E>>,
) -> Result<()> {
    result.map_err(|e| CliError::usage(format!("the chart cannot be drawn: {e}")))
}

/// Ranks across, layers down; a cell is the rank's load over the mean of its layer.
pub(crate) fn heat_map(title: &str, loads: &[Vec<f64>]) -> Result<String> {
    let (layers, ranks) = (loads.len(), loads.first().map_or(0, Vec::len));
    let relative: Vec<Vec<f64>> = loads
        .iter()
        .map(|layer| {
            let mean = layer.iter().sum::<f64>() / ranks.max(1) as f64;
            layer
                .iter()
                .map(|&load| if mean > 0.0 { load / mean } else { 1.0 })
                .collect()
        })
        .collect();
    let top = relative.iter().flatten().copied().fold(1.0, f64::max);
    let mut svg = String::new();
    {
        let height = 90 + (layers as u32 * 14).clamp(60, 900);
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        let caption = format!("{title} (white at 1, full red at {:.3})", hottest(top));
        let mut chart = draw_chart(
            ChartBuilder::on(&root)
                .caption(caption, ("sans-serif", 16, &INK))
                .margin(10)
                .x_label_area_size(34)
                .y_label_area_size(44)
                .build_cartesian_2d(-0.5..ranks as f64 - 0.5, layers as f64 - 0.5..-0.5),
        )?;
        draw(
            chart
                .configure_mesh()
                .disable_mesh()
                .x_desc("rank")
                .y_desc("layer")
                .x_labels(ranks.min(33))
                .y_labels(layers.min(12))
                .x_label_formatter(&whole_number)
                .y_label_formatter(&whole_number)
                .label_style(LABELS)
                .draw(),
        )?;
        let cells = relative.iter().enumerate().flat_map(|(l, layer)| {
            layer.iter().enumerate().map(move |(r, &value)| {
                let (x, y) = (r as f64, l as f64);
                let corners = [(x - 0.5, y - 0.5), (x + 0.5, y + 0.5)];
                Rectangle::new(corners, heat(value, top).filled())
            })
        });
        draw(chart.draw_series(cells).map(|_| ()))?;
        draw(root.present())?;
    }
    Ok(svg)
}

/// Where red is full: at the largest load, or a little above the mean if all are close to it.
fn hottest(top: f64) -> f64 {
    top.max(1.05)
}

/// The label of a tick, none between whole numbers.
fn whole_number(value: &f64) -> String {
    match value.fract() == 0.0 {
        true => format!("{value:.0}"),
        false => String::new(),
    }
}

/// Blue below the mean, white at it, red above.
fn heat(value: f64, top: f64) -> RGBColor {
    let towards =
        |from: u8, to: u8, t: f64| (f64::from(from) + (f64::from(to) - f64::from(from)) * t) as u8;
    let mix = |to: (u8, u8, u8), t: f64| {
        RGBColor(
            towards(255, to.0, t),
            towards(255, to.1, t),
            towards(255, to.2, t),
        )
    };
    if value >= 1.0 {
        mix((178, 24, 43), (value - 1.0) / (hottest(top) - 1.0))
    } else {
        mix((33, 102, 172), (1.0 - value).min(1.0))
    }
}

/// One bar per name.
pub(crate) fn bars(title: &str, values: &[(String, f64)]) -> Result<String> {
    let top = values
        .iter()
        .map(|(_, value)| *value)
        .fold(0.0, f64::max)
        .max(1e-9)
        * 1.05;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, 260)).into_drawing_area();
        let count = values.len();
        let mut chart = draw_chart(
            ChartBuilder::on(&root)
                .caption(title, ("sans-serif", 16, &INK))
                .margin(10)
                .x_label_area_size(30)
                .y_label_area_size(56)
                .build_cartesian_2d(-0.5..count as f64 - 0.5, 0.0..top),
        )?;
        let name = |x: &f64| match x.fract() == 0.0 {
            true => values
                .get(*x as usize)
                .map(|(name, _)| name.clone())
                .unwrap_or_default(),
            false => String::new(),
        };
        draw(
            chart
                .configure_mesh()
                .disable_x_mesh()
                .light_line_style(WHITE)
                .x_labels(2 * count + 1)
                .x_label_formatter(&name)
                .label_style(LABELS)
                .draw(),
        )?;
        let rectangles = values.iter().enumerate().map(|(i, (_, value))| {
            let corners = [(i as f64 - 0.35, 0.0), (i as f64 + 0.35, *value)];
            Rectangle::new(corners, COLOURS[0].filled())
        });
        draw(chart.draw_series(rectangles).map(|_| ()))?;
        draw(root.present())?;
    }
    Ok(svg)
}

/// One line per name over the same steps.
pub(crate) fn lines(title: &str, x_label: &str, series: &[(String, Vec<f64>)]) -> Result<String> {
    let steps = series
        .iter()
        .map(|(_, values)| values.len())
        .max()
        .unwrap_or(0);
    let all = || series.iter().flat_map(|(_, values)| values.iter().copied());
    let (low, high) = (all().fold(1.0, f64::min), all().fold(0.0, f64::max));
    let margin = ((high - low) * 0.05).max(0.005);
    // The legend stands above the lines: a tenth of the height for each.
    let legend = (high - low + 2.0 * margin) * 0.1 * series.len() as f64;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, 360)).into_drawing_area();
        let mut chart = draw_chart(
            ChartBuilder::on(&root)
                .caption(title, ("sans-serif", 16, &INK))
                .margin(10)
                .x_label_area_size(40)
                .y_label_area_size(60)
                .build_cartesian_2d(
                    0.0..steps.max(1) as f64,
                    low - margin..high + margin + legend,
                ),
        )?;
        draw(
            chart
                .configure_mesh()
                .light_line_style(WHITE)
                .x_desc(x_label)
                .x_label_formatter(&whole_number)
                .label_style(LABELS)
                .draw(),
        )?;
        for (i, (name, values)) in series.iter().enumerate() {
            let colour = COLOURS[i % COLOURS.len()];
            let points = values.iter().enumerate().map(|(x, &y)| (x as f64, y));
            let drawn = chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(|e| CliError::usage(format!("the chart cannot be drawn: {e}")))?;
            drawn.label(name.clone()).legend(move |(x, y)| {
                PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
            });
        }
        draw(
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE.mix(0.8))
                .border_style(INK)
                .draw(),
        )?;
        draw(root.present())?;
    }
    Ok(svg)
}

fn draw_chart<T, E: std::error::Error + Send + Sync>(
    chart: std::result::Result<T, DrawingAreaErrorKind<E>>,
) -> Result<T> {
    chart.map_err(|e| CliError::usage(format!("the chart cannot be drawn: {e}")))
}
