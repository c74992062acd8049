//! A file that is read again is read in part. Whatever the versions that follow one another, each
//! must be taken, or refused with the same words, as if it were the first.

use std::sync::Arc;

use proptest::prelude::*;
use weir::source::file::{Reader, parse};
use weir_mesh::{ServiceName, Timeouts};

const NODES: &str = "[[node]]\nname = \"n1\"\naddress = \"10.0.0.1\"\n\
                     [[node]]\nname = \"n2\"\naddress = \"10.0.0.2\"\n";

/// A service, written in one of the ways that people write.
fn service(name: u8, ports: u8, tasks: u8, way: u8) -> String {
    let header =
        ["[[service]]\n", "  [[ service ]] # web\n", "\t[[service]]\r\n"][way as usize % 3];
    let port = match ports % 6 {
        0 => String::new(),
        1 => format!("publish = [\"{}:80\"]\n", 8000 + u16::from(name)),
        2 => "publish = [\"80\", \"81/udp\"]\n".into(),
        3 => "publish = [\"30100:1\"]\n".into(),
        4 => "publish = [{ published = 90, target = 80, mode = \"host\" }]\n".into(),
        _ => format!("publish = [\n  \"{}:80\",\n]\n", 8000 + u16::from(ports)),
    };
    let label = match way % 5 {
        0 => format!("name = '''s{name}'''\n"),
        1 => format!("name = \"\"\"\ns{name}\"\"\" # '''\n"),
        _ => format!("name = \"s{name}\"\n"),
    };
    let task = |task: u8| {
        let node = if way % 17 == 16 { 9 } else { task % 2 + 1 };
        let last = if way % 13 == 12 { 1 } else { task };
        format!(
            "[[service.task]]\nname = \"t{task}\"\nnode = \"n{node}\"\naddress = \"10.1.{name}.{last}\"\n"
        )
    };
    let tasks: String = (1..=tasks % 4).map(task).collect();
    format!("{header}{label}{port}{tasks}")
}

/// Bits that make a text another one in ways that are hard to see.
const SNIPPETS: [&str; 20] = [
    "'''",
    "\"\"\"",
    "\"",
    "'",
    "#",
    "\n",
    "\r",
    "\r\n",
    " ",
    "\u{feff}",
    "[[service]]\n",
    "[[ service ]]",
    "[[service]]\nname = \"s1\"\n",
    "[service]\n",
    "service = []\n",
    "x = '''\n[[service]]\n'''\n",
    "[[node]]\nname = \"n3\"\naddress = \"10.0.0.3\"\n",
    "\\",
    "]",
    "ü",
];

#[derive(Clone, Debug)]
enum Edit {
    Replace(prop::sample::Index, String),
    Insert(prop::sample::Index, String),
    Remove(prop::sample::Index),
    Swap(prop::sample::Index, prop::sample::Index),
    Repeat(prop::sample::Index),
    /// Takes some bytes out, anywhere, and puts a snippet there.
    Mangle(prop::sample::Index, usize, &'static str),
    /// Cuts the end off.
    Truncate(prop::sample::Index),
}

fn block() -> impl Strategy<Value = String> {
    prop_oneof![
        12 => (0_u8..12, any::<u8>(), any::<u8>(), any::<u8>())
            .prop_map(|(name, ports, tasks, way)| service(name, ports, tasks, way)),
        1 => Just("[[node]]\nname = \"n3\"\naddress = \"10.0.0.3\"\n".to_owned()),
        1 => prop::sample::select(SNIPPETS.to_vec()).prop_map(str::to_owned),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        3 => (at(), block()).prop_map(|(at, block)| Edit::Replace(at, block)),
        2 => (at(), block()).prop_map(|(at, block)| Edit::Insert(at, block)),
        2 => at().prop_map(Edit::Remove),
        1 => (at(), at()).prop_map(|(a, b)| Edit::Swap(a, b)),
        1 => at().prop_map(Edit::Repeat),
        3 => (at(), 0_usize..4, prop::sample::select(SNIPPETS.to_vec()))
            .prop_map(|(at, gone, snippet)| Edit::Mangle(at, gone, snippet)),
        1 => at().prop_map(Edit::Truncate),
    ]
}

/// The text after an edit. Edits of blocks last; a mangled text is only one version.
fn apply(blocks: &mut Vec<String>, edit: &Edit) -> String {
    let len = blocks.len();
    match edit {
        Edit::Insert(at, block) => blocks.insert(at.index(len + 1), block.clone()),
        Edit::Replace(at, block) if len > 0 => blocks[at.index(len)] = block.clone(),
        Edit::Remove(at) if len > 0 => drop(blocks.remove(at.index(len))),
        Edit::Swap(a, b) if len > 0 => blocks.swap(a.index(len), b.index(len)),
        Edit::Repeat(at) if len > 0 => blocks.push(blocks[at.index(len)].clone()),
        _ => {}
    }
    let mut text = blocks.concat();
    let boundary = |text: &str, mut at: usize| {
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    match edit {
        Edit::Mangle(at, gone, snippet) => {
            let start = boundary(&text, at.index(text.len() + 1));
            let end = boundary(&text, (start + gone).min(text.len())).max(start);
            text.replace_range(start..end, snippet);
        }
        Edit::Truncate(at) => text.truncate(boundary(&text, at.index(text.len() + 1))),
        _ => {}
    }
    text
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn a_text_says_the_same_whatever_was_read_before(
        first in prop::collection::vec((0_u8..30, 0_u8..3, any::<u8>()), 0..10),
        edits in prop::collection::vec(edit(), 1..12),
    ) {
        let services = first.iter().map(|(name, ports, tasks)| service(*name, *ports, *tasks, 2));
        let mut blocks: Vec<String> = [NODES.to_owned()].into_iter().chain(services).collect();
        let mut reader = Reader::new(Timeouts::default());
        reader.read("mesh.toml", &blocks.concat()).ok();
        for edit in &edits {
            let text = apply(&mut blocks, edit);
            let whole = parse("mesh.toml", &text, Timeouts::default());
            let again = reader.read("mesh.toml", &text);
            prop_assert_eq!(again.as_deref(), whole.as_ref(), "after {:?}:\n{}", edit, text);
        }
    }
}

fn mesh(services: &[(u8, u8)]) -> String {
    services.iter().map(|(name, tasks)| service(*name, 1, *tasks, 2)).collect()
}

#[test]
fn services_that_did_not_change_are_shared_with_what_was_read_before() {
    let mut reader = Reader::new(Timeouts::default());
    let read = |reader: &mut Reader, services: &[(u8, u8)]| {
        reader.read("mesh.toml", &(NODES.to_owned() + &mesh(services))).unwrap()
    };
    let before = read(&mut reader, &[(1, 3), (2, 3), (3, 3), (4, 3)]);
    let after = read(&mut reader, &[(4, 3), (1, 3), (3, 2), (5, 1)]);
    let shared = |name: &str| {
        let name = ServiceName::new(name);
        Arc::ptr_eq(&before.services[&name], &after.services[&name])
    };
    assert!(shared("s1") && shared("s4"));
    assert!(!shared("s3"));
    assert_eq!(after.services.len(), 4);
}

#[test]
fn services_are_shared_across_a_version_that_was_refused() {
    let mut reader = Reader::new(Timeouts::default());
    let text = NODES.to_owned() + &mesh(&[(1, 3), (2, 3)]);
    let before = reader.read("mesh.toml", &text).unwrap();
    assert!(reader.read("mesh.toml", &text.replace("node = \"n2\"", "node = \"n9\"")).is_err());
    let after = reader.read("mesh.toml", &format!("# all is well again\n{text}")).unwrap();
    let name = ServiceName::new("s2");
    assert!(Arc::ptr_eq(&before.services[&name], &after.services[&name]));
}
