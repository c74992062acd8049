//! The status page in a real browser, which looks at the agents of a lab.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use weir_tests::browser::Browser;
use weir_tests::{Authority, Lab, Probe, Scene, State, eventually};

const SOON: Duration = Duration::from_secs(10);
const WINDOW: (u32, u32) = (1280, 900);
const PHONE: (u32, u32) = (390, 844);

/// `web` with a task on each of two hosts, `db` with one.
fn scene() -> Scene {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    scene.service("web", 8080);
    scene.service("db", 5432);
    for (service, host, task) in
        [("web", "n1", "web.1"), ("web", "n2", "web.2"), ("db", "n2", "db.1")]
    {
        scene.task(service, host, task).unwrap();
    }
    scene.start().unwrap();
    scene
}

fn browser(scene: &Scene, window: (u32, u32), query: &str) -> Browser {
    let browser = Browser::start(scene.lab.client("c1").netns(), window).unwrap();
    let address = format!("http://{}:9950/{query}", scene.lab.host("n1").addresses()[0]);
    browser.open(&address).unwrap();
    shows(&browser, "#node", "on n1");
    browser
}

/// Waits until an element shows a text.
fn shows(browser: &Browser, selector: &str, wanted: &str) {
    eventually(&format!("{selector} to show {wanted:?}"), SOON, || {
        let text = browser.text(selector)?;
        ensure!(text.contains(wanted), "{text:?}");
        Ok(())
    })
    .unwrap();
}

/// The names of what is shown at a selector, sorted, without what a scene marks its versions by.
fn names(browser: &Browser, selector: &str) -> Result<Vec<String>> {
    let script = format!(
        "return [...document.querySelectorAll({selector:?})].map((it) => it.textContent).sort()"
    );
    let mut names: Vec<String> = serde_json::from_value(browser.run(&script)?)?;
    names.retain(|name| !name.starts_with("mark-"));
    Ok(names)
}

fn shows_names(browser: &Browser, selector: &str, wanted: &[&str]) {
    eventually(&format!("{selector} to be {wanted:?}"), SOON, || {
        let found = names(browser, selector)?;
        ensure!(found == wanted, "{found:?}");
        Ok(())
    })
    .unwrap();
}

/// `WEIR_SCREENSHOTS=docs/images cargo nextest run -p weir-tests --test page` makes those of the
/// documents.
fn screenshot(browser: &Browser, name: &str) {
    let picture = browser.screenshot().unwrap();
    assert!(picture.starts_with(b"\x89PNG"), "a picture");
    if let Ok(directory) = std::env::var("WEIR_SCREENSHOTS") {
        fs::create_dir_all(&directory).unwrap();
        fs::write(format!("{directory}/{name}.png"), picture).unwrap();
    }
}

const SERVICES: &str = "#services h3";
const BOXES: &str = "#nodes .tasks li span";
const BAD_BOXES: &str = "#nodes .tasks li.bad span";

#[test]
fn a_browser_shows_who_serves_what_and_follows_what_changes() {
    let mut scene = scene();
    let window = browser(&scene, WINDOW, "");
    window.run("window.loadedOnce = true").unwrap();
    shows(&window, "#summary", "works · 2 nodes");
    shows_names(&window, BOXES, &["db.1", "web.1", "web.2"]);
    let ports = "8080/tcp → 80, 8080/udp → 53";
    shows(&window, "#services", ports);

    // What enters through this node is counted, and has a rate.
    let target = scene.lab.host("n1").targets(8080)[0];
    let client = scene.lab.client("c1");
    eventually("a rate", SOON, || {
        for _ in 0..20 {
            client.ask(&Probe::tcp(target)).client_kept(client.addresses()[0])?;
        }
        let rates = names(&window, "#services .rate")?;
        ensure!(rates.iter().any(|rate| !rate.contains(" 0 conn/s")), "{rates:?}");
        Ok(())
    })
    .unwrap();
    screenshot(&window, "page");

    // A scale-up appears by itself.
    scene.task("web", "n2", "web.3").unwrap();
    scene.apply().unwrap();
    shows_names(&window, BOXES, &["db.1", "web.1", "web.2", "web.3"]);
    // A task that is down is named, and its service is the first of all.
    scene.mesh.service("web").state("web.3", State::Down);
    scene.apply().unwrap();
    shows(&window, "#services details:first-child .bad", "1 task out");
    shows(&window, "#nodes .tasks li.bad", "web.3");
    assert_eq!(window.run("return window.loadedOnce").unwrap(), true, "it was not loaded again");

    // The agent dies; the page says so, and keeps what it knew.
    scene.agent("n1").kill9();
    shows(&window, "#lost", "No answer from this agent");
    shows_names(&window, BOXES, &["db.1", "web.1", "web.2", "web.3"]);
    scene.agent("n1").launch().unwrap();
    eventually("the page to be live again", SOON, || {
        ensure!(window.run("return document.getElementById('lost').hidden")? == true, "it is not");
        Ok(())
    })
    .unwrap();
    drop(window);
    scene.lab.finish().unwrap();
}

#[test]
fn a_node_that_dies_is_shown_with_its_tasks_out_and_is_back_when_it_lives() {
    let mut scene = Scene::new(Lab::builder()).unwrap();
    scene.service("web", 8080);
    for (host, task) in [("n1", "web.1"), ("n2", "web.2"), ("n2", "web.3")] {
        scene.task("web", host, task).unwrap();
    }
    let authority = Authority::of(&scene.lab).unwrap();
    scene.start_with(|host, config| authority.link(host, config)).unwrap();
    let window = browser(&scene, WINDOW, "");
    window.run("window.loadedOnce = true").unwrap();
    shows_names(&window, BOXES, &["web.1", "web.2", "web.3"]);
    shows_names(&window, BAD_BOXES, &[]);

    // Its power fails.
    scene.agent("n2").kill9();
    scene.lab.unplug("n2").unwrap();
    shows_names(&window, BAD_BOXES, &["web.2", "web.3"]);
    shows(&window, "#services details:first-child .bad", "2 tasks out");
    shows(&window, "#services", "n2 is silent");
    shows(&window, "#nodes p.bad", "10.77.0.12 · silent · 2 tasks");
    shows(&window, "#subsystems", "the agent of the manager at 10.77.0.12:7951 is not reached");

    scene.lab.plug("n2").unwrap();
    scene.agent("n2").launch().unwrap();
    scene.agent("n2").wait_ready().unwrap();
    shows_names(&window, BAD_BOXES, &[]);
    assert_eq!(window.run("return window.loadedOnce").unwrap(), true, "it was not loaded again");
    drop(window);
    scene.lab.finish().unwrap();
}

#[test]
fn the_filter_is_in_the_address_and_works_by_keyboard() {
    let scene = scene();
    let window = browser(&scene, WINDOW, "?q=db");
    shows_names(&window, SERVICES, &["db"]);
    shows_names(&window, BOXES, &["db.1"]);
    window.press("/").unwrap();
    window.escape().unwrap();
    shows_names(&window, SERVICES, &["db", "web"]);
    assert!(!window.address().unwrap().contains('?'), "an empty filter is not in the address");
    window.press("/web n2").unwrap();
    shows_names(&window, BOXES, &["web.2"]);
    assert!(window.address().unwrap().ends_with("/?q=web+n2"), "{}", window.address().unwrap());
    window.escape().unwrap();
    window.press("/no such thing").unwrap();
    shows_names(&window, SERVICES, &[]);
    drop(window);
    scene.lab.finish().unwrap();
}

#[test]
fn a_phone_in_the_dark_shows_it_too_and_nothing_sticks_out() {
    let scene = scene();
    let window = browser(&scene, PHONE, "");
    window.prefer("dark").unwrap();
    shows_names(&window, BOXES, &["db.1", "web.1", "web.2"]);
    let wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth";
    assert_eq!(window.run(wide).unwrap(), 0, "nothing is wider than the window");
    let back = "return getComputedStyle(document.body).backgroundColor";
    assert_eq!(window.run(back).unwrap(), "rgb(22, 23, 26)");
    screenshot(&window, "page-phone");
    drop(window);
    scene.lab.finish().unwrap();
}

#[test]
fn a_name_that_is_markup_is_shown_and_not_obeyed() {
    // A name has no blanks; a browser takes slashes as well.
    const NAME: &str = "<img/src=x/onerror=\"window.obeyed=1\">";
    let mut scene = Scene::new(Lab::builder().hosts(1)).unwrap();
    scene.service(NAME, 8080);
    let nowhere = "172.18.0.99".parse().unwrap();
    scene.mesh.service(NAME).task_at("<script>window.obeyed=2</script>", "n1", &[nowhere]);
    scene.start().unwrap();
    let window = browser(&scene, WINDOW, "");
    shows_names(&window, SERVICES, &[NAME]);
    shows_names(&window, BOXES, &["<script>window.obeyed=2</script>"]);
    assert_eq!(window.run("return window.obeyed ?? null").unwrap(), serde_json::Value::Null);
    assert_eq!(window.run("return document.images.length").unwrap(), 0);
    // Whatever got into the page could not be loaded from elsewhere, nor run.
    let inject = "const it = document.createElement('script'); it.textContent = 'window.obeyed = 3'; \
                  document.body.append(it); return window.obeyed ?? null";
    assert_eq!(window.run(inject).unwrap(), serde_json::Value::Null, "the policy forbids it");
    drop(window);
    scene.lab.finish().unwrap();
}
