//! A live run on a terminal.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event as Input, KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{
    Axis, Bar, BarChart, BarGroup, Block, Chart, Dataset, GraphType, Paragraph,
};

use super::record::Step;

/// Steps on screen.
const HISTORY: usize = 200;
/// Moves on screen.
const MOVES: usize = 100;

/// A line of a chart: its name, its colour, its points.
type Series<'a> = (&'a str, Color, &'a [(f64, f64)]);

/// The screen, given back when dropped.
pub(super) struct Dashboard {
    terminal: DefaultTerminal,
    title: String,
    steps: VecDeque<Step>,
    moves: VecDeque<String>,
}

impl Dashboard {
    pub(super) fn open(title: String) -> io::Result<Self> {
        Ok(Self {
            terminal: ratatui::try_init()?,
            title,
            steps: VecDeque::new(),
            moves: VecDeque::new(),
        })
    }

    /// Takes in a step.
    pub(super) fn push(&mut self, step: Step) {
        for event in &step.events {
            let text = serde_json::to_string(event).unwrap_or_default();
            self.moves
                .push_front(format!("{:>6}  {}", step.step, plain(&text)));
        }
        self.moves.truncate(MOVES);
        self.steps.push_back(step);
        while self.steps.len() > HISTORY {
            self.steps.pop_front();
        }
    }

    /// Draws; whether the user wants to end.
    pub(super) fn draw(&mut self) -> io::Result<bool> {
        let (title, steps, moves) = (&self.title, &self.steps, &self.moves);
        self.terminal.draw(|frame| {
            let [top, middle, bottom] = Layout::vertical([
                Constraint::Length(4),
                Constraint::Percentage(50),
                Constraint::Fill(1),
            ])
            .areas(frame.area());
            let [balance, time] =
                Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)])
                    .areas(middle);
            let [ranks, events] =
                Layout::horizontal([Constraint::Percentage(40), Constraint::Fill(1)]).areas(bottom);
            frame.render_widget(head(title, steps.back()), top);
            let series = points(steps, |s| Some(s.balancedness));
            frame.render_widget(
                chart(
                    "balancedness per step",
                    &[("", Color::Green, &series)],
                    Some(1.0),
                ),
                balance,
            );
            let measured = points(steps, |s| Some(s.measured_ms));
            let predicted = points(steps, |s| s.predicted_ms);
            let times: [Series<'_>; 2] = [
                ("measured", Color::Cyan, &measured),
                ("predicted", Color::Yellow, &predicted),
            ];
            frame.render_widget(chart("step time, ms", &times, None), time);
            frame.render_widget(tokens(steps.back()), ranks);
            let lines: Vec<Line<'_>> = moves.iter().map(|text| Line::raw(text.as_str())).collect();
            let block = Block::bordered().title("moves");
            frame.render_widget(Paragraph::new(lines).block(block), events);
        })?;
        let mut ends = false;
        while event::poll(Duration::ZERO)? {
            if let Input::Key(key) = event::read()? {
                ends |= is_end(key);
            }
        }
        Ok(ends)
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Whether a key ends the run. On a screen that is drawn on, Ctrl-C is a key like others.
fn is_end(key: KeyEvent) -> bool {
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        KeyCode::Char('c') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

/// JSON without its marks.
fn plain(json: &str) -> String {
    json.trim_matches(['{', '}'])
        .replace('"', "")
        .replace(',', "  ")
}

fn head<'a>(title: &'a str, last: Option<&'a Step>) -> Paragraph<'a> {
    let block = Block::bordered()
        .title(title)
        .title_bottom("q or Ctrl-C ends the run");
    let Some(step) = last else {
        return Paragraph::new("reading experts").block(block);
    };
    let state = match step.state.split(' ').next() {
        Some("failed") => step.state.as_str().red(),
        Some("moving") => step.state.as_str().yellow(),
        _ => step.state.as_str().green(),
    };
    let numbers = format!(
        "step {}   ranks {}   balancedness {:.4}   between passes {:.3} ms   sent {} bytes",
        step.step, step.ranks, step.balancedness, step.between_ms, step.sent_bytes
    );
    Paragraph::new(vec![Line::raw(numbers), Line::from(state)]).block(block)
}

fn points(steps: &VecDeque<Step>, y: impl Fn(&Step) -> Option<f64>) -> Vec<(f64, f64)> {
    let point = |s: &Step| Some((s.step as f64, y(s)?));
    steps.iter().filter_map(point).collect()
}

fn chart<'a>(title: &'a str, series: &[Series<'a>], top: Option<f64>) -> Chart<'a> {
    let all = || series.iter().flat_map(|(_, _, points)| points.iter());
    let first = all().map(|p| p.0).fold(f64::INFINITY, f64::min);
    let last = all().map(|p| p.0).fold(0.0, f64::max);
    let high = top.unwrap_or_else(|| 1.1 * all().map(|p| p.1).fold(0.0, f64::max));
    let datasets = series.iter().map(|(name, color, points)| {
        Dataset::default()
            .name(*name)
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(*color))
            .data(points)
    });
    let first = first.min(last);
    Chart::new(datasets.collect())
        .block(Block::bordered().title(title))
        .x_axis(
            Axis::default()
                .bounds([first, last.max(first + 1.0)])
                .labels([format!("{first}"), format!("{last}")]),
        )
        .y_axis(
            Axis::default()
                .bounds([0.0, high.max(f64::MIN_POSITIVE)])
                .labels(["0".to_owned(), format!("{high:.2}")]),
        )
}

fn tokens(last: Option<&Step>) -> BarChart<'static> {
    let tokens = last.map_or(&[][..], |step| &step.tokens);
    let bars: Vec<Bar<'static>> = tokens
        .iter()
        .enumerate()
        .map(|(rank, &n)| Bar::default().value(n).label(format!("rank {rank}")))
        .collect();
    BarChart::default()
        .block(Block::bordered().title("routed tokens of each rank"))
        .bar_width(8)
        .data(BarGroup::default().bars(&bars))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_end_the_run() {
        let ends = |code, modifiers| is_end(KeyEvent::new(code, modifiers));
        assert!(ends(KeyCode::Char('q'), KeyModifiers::NONE));
        assert!(ends(KeyCode::Esc, KeyModifiers::NONE));
        assert!(ends(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert!(!ends(KeyCode::Char('c'), KeyModifiers::NONE));
        assert!(!ends(KeyCode::Char('x'), KeyModifiers::CONTROL));
    }
}
