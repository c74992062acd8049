//! Reads a file that is read again and again, each time with a few changes.
//!
//! Of a text that is good, each piece is remembered by its digest, with what it said. Of the next
//! text only the
//! pieces that are not among them are parsed, and only what depends on these is checked. Whatever is
//! not plainly right is left to the parse of the whole, which alone reports mistakes: both ways
//! answer the same, one of them sooner.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Range,
    sync::Arc,
};

use weir_mesh::{
    Generation, MeshSnapshot, Node, Port, PublishMode, Service, ServiceName, Timeouts,
    ports::{PortSpec, assign_ports, port_conflicts},
    snapshot::unknown_node,
};

use super::{
    assemble::{Drafts, Piece, note_shared_addresses, parse_whole},
    networks,
    pieces::{Digest, begins_piece, piece_end},
    services::ServiceDraft,
};
use crate::{
    document::{Fault, Findings},
    source::Desired,
};

type Services = BTreeMap<ServiceName, Arc<Service>>;
type Specs<'a> = BTreeMap<&'a ServiceName, &'a [PortSpec]>;

/// Reads the versions of one file.
pub struct Reader {
    defaults: Timeouts,
    last: Option<Reading>,
}

/// A text that was good, and what it said.
struct Reading {
    pieces: Vec<Piece>,
    desired: Arc<Desired>,
}

/// A piece of the new text.
#[derive(PartialEq)]
enum Step {
    /// The piece of the old text with this number.
    Kept(usize),
    /// Another one.
    New(Range<usize>),
}

impl Reader {
    /// A reader that has read nothing. Services that set no timeouts get `defaults`.
    pub fn new(defaults: Timeouts) -> Self {
        Self { defaults, last: None }
    }

    /// Takes the reader away, to be given back; one that has read nothing stays.
    pub fn take(&mut self) -> Self {
        Self { defaults: self.defaults, last: self.last.take() }
    }

    /// Reads the text of `file`: the desired state, or everything that is wrong. Services that are
    /// as they were in the last good text are shared with the answer to that.
    pub fn read(&mut self, file: &str, text: &str) -> Result<Arc<Desired>, Vec<Fault>> {
        if let Some(last) = &mut self.last {
            let steps = last.align(text);
            if last.is_same(&steps) {
                return Ok(last.desired.clone());
            }
            if let Some((desired, pieces)) = last.follow(text, steps, self.defaults) {
                let desired = Arc::new(desired);
                *last = Reading { pieces, desired: desired.clone() };
                return Ok(desired);
            }
        }
        let (mut desired, pieces) = parse_whole(file, text, self.defaults)?;
        if let Some(last) = &self.last {
            share(&mut desired.services, &last.desired.services);
        }
        let desired = Arc::new(desired);
        self.last = Some(Reading { pieces, desired: desired.clone() });
        Ok(desired)
    }
}

/// Takes over what did not change.
fn share(services: &mut Services, earlier: &Services) {
    for (name, service) in services {
        if let Some(known) = earlier.get(name).filter(|known| *known == service) {
            *service = known.clone();
        }
    }
}

impl Piece {
    /// Takes its content away, to be kept.
    fn take(&mut self) -> Self {
        let (nodes, services) =
            (std::mem::take(&mut self.nodes), std::mem::take(&mut self.services));
        Self { nodes, services, ..*self }
    }
}

impl Reading {
    /// Whether the new text is this one.
    fn is_same(&self, steps: &[Step]) -> bool {
        let same = (0..self.pieces.len()).map(Step::Kept);
        steps.len() == self.pieces.len() && same.zip(steps).all(|(old, new)| old == *new)
    }

    /// What `text` says, if it is good and can be told from what this one said.
    fn follow(
        &mut self,
        text: &str,
        steps: Vec<Step>,
        defaults: Timeouts,
    ) -> Option<(Desired, Vec<Piece>)> {
        let findings = Findings::new("", text);
        let mut drafts = Drafts::default();
        let mut removed = vec![true; self.pieces.len()];
        for step in &steps {
            match step {
                Step::Kept(at) if removed[*at] => removed[*at] = false,
                // The same piece twice is a mistake.
                Step::Kept(_) => return None,
                Step::New(range) => {
                    drafts.take_piece(&findings, range.clone(), defaults);
                }
            }
        }
        // An address from a pool depends on all services.
        if self.pieces.iter().chain(&drafts.pieces).any(|piece| piece.of_networks) {
            return None;
        }
        drafts.services.iter().for_each(|draft| note_shared_addresses(draft, &findings));
        if !findings.is_empty() {
            return None;
        }
        let left = self.pieces.iter().zip(&removed).filter(|(_, removed)| **removed);
        let before = specs_of(left.map(|(piece, _)| piece));
        let after = specs_of(&drafts.pieces);
        let desired = self.change(&steps, &drafts.pieces, &before, &after, drafts.services)?;
        let mut new = drafts.pieces.into_iter();
        let mut pieces = Vec::with_capacity(steps.len());
        for step in steps {
            pieces.push(match step {
                Step::Kept(at) => self.pieces[at].take(),
                Step::New(_) => new.next()?,
            });
        }
        Some((desired, pieces))
    }

    /// Cuts `text` into the same pieces as if it were cut from scratch.
    ///
    /// Tokens of TOML depend on nothing before them, so where a piece begins the rest is cut as if
    /// it were a text of its own. A piece that stands there again, and ends with a line, and after
    /// which another begins, is cut as it was then.
    fn align(&self, text: &str) -> Vec<Step> {
        let mut steps = Vec::with_capacity(self.pieces.len() + 1);
        let mut by_digest = None;
        let (mut at, mut next) = (0, 0_usize);
        while at < text.len() || steps.is_empty() {
            // Unchanged; one removed; one added.
            let candidates = [Some(next), next.checked_add(1), next.checked_sub(1)];
            let first = steps.is_empty();
            // The top of the file is no service, and stands nowhere else.
            let mut candidates =
                candidates.into_iter().flatten().filter(|old| (*old == 0) == first);
            let near = candidates.find(|old| self.stands_at(*old, text, at));
            let (old, end) = match near {
                Some(old) => (Some(old), at + self.pieces[old].len),
                None => {
                    let end = piece_end(text, at, first);
                    let in_place = first || self.stands_at(next + 1, text, end);
                    let mut moved = || {
                        let by_digest = by_digest.get_or_insert_with(|| self.by_digest());
                        by_digest.get(&Digest::of(&text[at..end])).copied()
                    };
                    (if in_place { None } else { moved() }, end)
                }
            };
            next = old.unwrap_or(next) + 1;
            steps.push(old.map_or(Step::New(at..end), Step::Kept));
            at = end;
        }
        steps
    }

    fn by_digest(&self) -> HashMap<Digest, usize> {
        let pieces = self.pieces.iter().enumerate();
        pieces.map(|(at, piece)| (piece.digest, at)).collect()
    }

    fn stands_at(&self, old: usize, text: &str, at: usize) -> bool {
        let Some(piece) = self.pieces.get(old) else { return false };
        let Some((found, rest)) = text[at..].split_at_checked(piece.len) else { return false };
        let is_whole = rest.is_empty() || (is_line_end(found) && begins_piece(rest));
        is_whole && Digest::of(found) == piece.digest
    }

    fn change(
        &self,
        steps: &[Step],
        new: &[Piece],
        before: &Specs<'_>,
        after: &Specs<'_>,
        drafts: Vec<ServiceDraft>,
    ) -> Option<Desired> {
        let old = &self.desired.services;
        let is_new = |name: &ServiceName| before.contains_key(name) || !old.contains_key(name);
        if after.len() != drafts.len() || !after.keys().all(|name| is_new(name)) {
            return None;
        }
        let same_ports = before == after;
        let mut assigned = match same_ports {
            true => BTreeMap::new(),
            false => self.assign(steps, new)?,
        };
        let mut ports = |name: &ServiceName| match same_ports {
            true => old.get(name).map(|service| service.ports.clone()),
            false => assigned.remove(name),
        };
        let mut host_mode = false;
        let mut added = Vec::with_capacity(drafts.len());
        for draft in drafts {
            let ports = ports(&draft.name)?;
            host_mode |= ports.iter().any(|port| port.mode == PublishMode::Host);
            added.push(draft.into_service(ports));
        }
        let MeshSnapshot { nodes, services: mut added, .. } =
            MeshSnapshot::build(Generation(0), self.nodes(steps, new), added).ok()?;
        share(&mut added, old);
        let mut services = old.clone();
        before.keys().for_each(|name| drop(services.remove(*name)));
        renumber(&mut services, assigned);
        services.extend(added);
        let unknown = || unknown_node(services.values(), &nodes);
        let misplaced = nodes != self.desired.nodes && unknown().is_some();
        let contested = (!same_ports || host_mode) && !port_conflicts(&services).is_empty();
        let silent = services.is_empty() && nodes.is_empty();
        let sound = !misplaced && !contested && !silent;
        sound.then(|| {
            let networks = networks::named(services.values(), []);
            Desired { here: None, nodes, services, networks }
        })
    }

    /// All pieces of the new text, in order.
    fn every<'a>(&'a self, steps: &'a [Step], new: &'a [Piece]) -> impl Iterator<Item = &'a Piece> {
        let mut new = new.iter();
        steps.iter().filter_map(move |step| match step {
            Step::Kept(at) => self.pieces.get(*at),
            Step::New(_) => new.next(),
        })
    }

    fn nodes(&self, steps: &[Step], new: &[Piece]) -> Vec<Node> {
        self.every(steps, new).flat_map(|piece| piece.nodes.iter().cloned()).collect()
    }

    fn assign(&self, steps: &[Step], new: &[Piece]) -> Option<BTreeMap<ServiceName, Vec<Port>>> {
        let services = self.every(steps, new).flat_map(|piece| &piece.services);
        let specs = services.map(|(name, specs)| (name.clone(), specs.to_vec())).collect();
        assign_ports(&specs).ok()
    }
}

/// Gives services the numbers that their ports have now.
fn renumber(services: &mut Services, assigned: BTreeMap<ServiceName, Vec<Port>>) {
    for (name, ports) in assigned {
        if let Some(service) = services.get_mut(&name)
            && service.ports != ports
        {
            Arc::make_mut(service).ports = ports;
        }
    }
}

fn specs_of<'a>(pieces: impl IntoIterator<Item = &'a Piece>) -> Specs<'a> {
    let services = pieces.into_iter().flat_map(|piece| &piece.services);
    services.map(|(name, specs)| (name, &**specs)).collect()
}

/// Whether a text ends where a line does, or with the blanks that begin one.
fn is_line_end(text: &str) -> bool {
    let text = text.trim_end_matches([' ', '\t']);
    text.is_empty() || text.ends_with('\n')
}
