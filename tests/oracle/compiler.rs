//! What the compiler promises of every policy.

use std::net::IpAddr;

use killswitch::dice::Dice;
use killswitch::policy::Policy;
use killswitch::ruleset::expression::{lower, raise};
use killswitch::ruleset::{LinkRef, Rule, Table, compile, guard, text};
use proptest::prelude::*;

use crate::policies;

fn tables(policy: &Policy) -> Vec<Table> {
    let links =
        [LinkRef { index: 2, name: "eth0".into() }, LinkRef { index: 7, name: "wlan0".into() }];
    vec![compile(policy), guard(policy, None), guard(policy, Some(&links))]
}

fn text(tables: &[Table]) -> String {
    tables.iter().map(text::script).collect()
}

/// Fields that load the same bytes are one.
fn canonical(mut rule: Rule) -> Rule {
    use killswitch::ruleset::Field;
    for field in rule.matches.iter_mut().flat_map(|it| &mut it.fields) {
        let load = field.load();
        *field = *Field::ALL.iter().find(|it| it.load() == load).expect("a field");
    }
    rule
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() })]

    #[test]
    fn every_rule_is_read_back_as_it_was(seed in any::<u64>()) {
        let policy = policies::policy(&mut Dice::new(seed));
        for rule in tables(&policy).iter().flat_map(|it| &it.chains).flat_map(|it| &it.rules) {
            let raised = raise(&lower(rule), &rule.comment).map(canonical);
            prop_assert_eq!(raised, Some(canonical(rule.clone())), "{}", text::rule(rule));
        }
    }

    #[test]
    fn the_same_policy_compiles_to_the_same_bytes(seed in any::<u64>()) {
        let policy = policies::policy(&mut Dice::new(seed));
        let again = policies::policy(&mut Dice::new(seed));
        prop_assert_eq!(tables(&policy), tables(&again));
        prop_assert_eq!(text(&tables(&policy)), text(&tables(&again)));
    }

    #[test]
    fn the_order_of_a_configuration_changes_nothing(seed in any::<u64>()) {
        let written = configuration(|_| {});
        let permuted = configuration(|list| shuffle(list, seed));
        prop_assert_eq!(text(&tables(&written)), text(&tables(&permuted)));
    }

    #[test]
    fn sets_are_sorted_and_apart(seed in any::<u64>()) {
        let policy = policies::policy(&mut Dice::new(seed));
        for set in tables(&policy).iter().flat_map(|it| &it.sets) {
            prop_assert!(!set.elements.is_empty());
            for pair in set.elements.windows(2) {
                prop_assert!(pair[0] < pair[1], "{}: {:?}", set.name, pair);
                if set.key.len() == 1 {
                    prop_assert!(pair[0].last < pair[1].first, "{}: {:?}", set.name, pair);
                }
            }
        }
    }

    /// Every jump has a target, every look-up a set, every base chain of the lock a last drop.
    #[test]
    fn nothing_dangles(seed in any::<u64>()) {
        use killswitch::ruleset::{Action, ChainPolicy, Test};
        let policy = policies::policy(&mut Dice::new(seed));
        for table in tables(&policy) {
            for chain in &table.chains {
                for rule in &chain.rules {
                    if let Action::Jump(target) = &rule.action {
                        prop_assert!(table.chain(target).is_some(), "{target}");
                    }
                    for it in &rule.matches {
                        if let Test::In(set) = &it.test {
                            prop_assert!(table.set(set).is_some(), "{set}");
                        }
                    }
                }
                if chain.base.as_ref().is_some_and(|base| base.policy == ChainPolicy::Drop) {
                    let last = chain.rules.last().unwrap();
                    prop_assert_eq!(&last.action, &Action::Drop);
                    prop_assert!(last.matches.is_empty());
                }
            }
        }
    }
}

fn shuffle(list: &mut [String], seed: u64) {
    let mut dice = Dice::new(seed);
    for at in (1..list.len()).rev() {
        list.swap(at, dice.below(at + 1));
    }
}

/// A configuration with every list, each in the order that `arrange` gives it.
fn configuration(arrange: impl Fn(&mut [String])) -> Policy {
    let list = |items: &[&str]| {
        let mut items: Vec<String> = items.iter().map(|it| (*it).to_owned()).collect();
        arrange(&mut items);
        items.join(", ")
    };
    let lan =
        list(&["\"192.168.1.0/24\"", "\"192.168.0.0/24\"", "\"10.1.0.0/16\"", "\"fd00:5::/64\""]);
    let ntp = list(&["\"192.0.2.1\"", "\"192.0.2.2\"", "\"2001:db8::123\""]);
    let inbound = list(&[
        "{ proto = \"tcp\", port = 22, from = [\"192.168.1.0/24\"] }",
        "{ proto = \"udp\", port = 22, from = [\"192.168.1.0/24\"] }",
        "{ proto = \"tcp\", port = 80, from = [\"192.168.0.0/16\"] }",
        "{ proto = \"tcp\", port = 80, from = [\"192.168.1.0/24\"] }",
    ]);
    let internal = list(&["\"docker0\"", "\"br-*\"", "\"virbr*\""]);
    let endpoints =
        list(&["\"198.51.100.7:51820\"", "\"[2001:db8:1::7]:51820\"", "\"198.51.100.7:443\""]);
    let addresses = list(&["\"10.64.0.2/32\"", "\"10.64.0.9/32\"", "\"fd00:64::2/128\""]);
    let toml = format!(
        "[tunnel]\nkind = \"external\"\ninterface = \"tun0\"\naddresses = [{addresses}]\n\
         [[server]]\nname = \"a\"\nendpoints = [{endpoints}]\nmessage_shape = \"any\"\n\
         [allow]\nlan = [{lan}]\nntp = [{ntp}]\ninbound = [{inbound}]\ninternal = [{internal}]\n"
    );
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("killswitch.toml");
    std::fs::write(&file, toml).expect("a file");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("a file");
    let config = killswitch::config::load(&file).unwrap_or_else(|error| panic!("{error}"));
    Policy::from_config(&config)
}

/// The worst that a list can be: the whole Internet but for its edges.
#[test]
fn a_range_to_the_last_address_has_its_bounds() {
    let mut policy = policies::policy(&mut Dice::new(3));
    policy.lan = vec!["255.255.255.254/31".parse().unwrap(), "fd00::/8".parse().unwrap()];
    let table = compile(&policy);
    let last = &table.set("lan4").unwrap().elements[0].last;
    assert_eq!(IpAddr::from(<[u8; 4]>::try_from(last.as_slice()).unwrap()), IpAddr::from([255; 4]));
}
