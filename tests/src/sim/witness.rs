//! Listens to what coordinator and nodes log: the story of a seed that went wrong, and which updates a
//! node was told to be accepted.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// What was heard.
#[derive(Debug, Default)]
pub(super) struct Heard {
    pub(super) log: Vec<String>,
    /// Client index and round of each update that its node was told to be accepted.
    pub(super) accepted: BTreeSet<(usize, u32)>,
}

#[derive(Clone, Default)]
pub(super) struct Witness(pub(super) Arc<Mutex<Heard>>);

/// The client index of a span.
struct Speaker(usize);

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
    index: Option<u64>,
    round: Option<u64>,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.rest, " {name}={value:?}"),
        };
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "index" => self.index = Some(value),
            "round" => self.round = Some(value),
            _ => {}
        }
        self.record_debug(field, &value);
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Witness {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("comity")
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let (Some(span), Some(index)) = (context.span(id), fields.index) {
            span.extensions_mut().insert(Speaker(index as usize));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let speaker = context.event_scope(event).and_then(|mut scope| {
            scope.find_map(|span| span.extensions().get::<Speaker>().map(|s| s.0))
        });
        let who = speaker.map_or_else(|| "coordinator".to_owned(), |i| format!("client {i}"));
        let at = turmoil::sim_elapsed().unwrap_or_default().as_millis();
        let mut heard = self.0.lock().unwrap();
        heard.log.push(format!("{at:>7} ms {who:<12} {}{}", fields.message, fields.rest));
        if let (Some(client), Some(round), "update accepted") =
            (speaker, fields.round, fields.message.as_str())
        {
            heard.accepted.insert((client, round as u32));
        }
    }
}
