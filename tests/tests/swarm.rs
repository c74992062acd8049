//! weir beside a real Docker Swarm, deployed as a user deploys it.

#![expect(clippy::unwrap_used, reason = "what fails in a function of a test fails the test")]

use weir_tests::swarm::{Swarm, task_images};

#[test]
fn a_swarm_of_three_nodes_runs_a_service_and_leaves_nothing() {
    let mut builder = Swarm::builder();
    for image in task_images().unwrap() {
        builder = builder.image(image);
    }
    let swarm = builder.build().unwrap();
    eprintln!("the Swarm is ready after {:?}", swarm.age());
    swarm
        .docker("service create -d --no-resolve-image --name web --replicas 3 -p 8081:80 task:v1")
        .unwrap();
    swarm.wait_running("web", 3).unwrap();
    eprintln!("the service runs after {:?}", swarm.age());
    swarm.finish().unwrap();
}
