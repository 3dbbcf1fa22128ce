//! The plans and worlds with which strategies are shown are usable.

use comity_federation::Plan;
use comity_simulator::World;

#[test]
fn the_plan_and_worlds_of_uneven_institutions_are_usable() {
    let plans = [
        include_str!("../../examples/skew/plan.toml"),
        include_str!("../../examples/skew/lies.toml"),
    ];
    for (plan, strategies) in plans.into_iter().zip([
        ["\"fedavg\"", "\"scaffold\"", "{ fedprox = { mu = 0.1 } }"],
        ["\"median\"", "{ trimmed_mean = { trim = 2 } }", "{ krum = { byzantine = 2 } }"],
    ]) {
        for strategy in strategies {
            Plan::from_toml(
                &plan.replace("strategy = \"fedavg\"", &format!("strategy = {strategy}")),
            )
            .unwrap();
        }
    }
    let parse = |text: &str| World::from_toml(text).unwrap();
    parse(include_str!("../../examples/skew/world.toml"));
    let world = parse(include_str!("../../examples/skew/attackers.toml"));
    assert_eq!(world.conduct.attackers.unwrap().clients, 2);
}
