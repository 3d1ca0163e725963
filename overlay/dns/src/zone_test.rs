//! A network's names follow its rows, in whatever order they come.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn service(names: &[&str], addresses: &[&str]) -> Service {
    Service {
        names: names.iter().map(|&name| name.to_owned()).collect(),
        virtual_addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
    }
}

fn endpoint(service: Option<u8>, address: &str, names: &[&str], serving: bool) -> Endpoint {
    Endpoint {
        service: service.map(|number| ServiceId([number; 16])),
        addresses: vec![address.parse().unwrap()],
        names: names.iter().map(|&name| name.to_owned()).collect(),
        serving: if serving { Serving::Yes } else { Serving::No },
    }
}

fn found(zone: &Zone, name: &str) -> Option<Vec<String>> {
    zone.addresses(name, Family::Both).map(|found| {
        let sorted: BTreeSet<String> = found.iter().map(IpAddr::to_string).collect();
        assert_eq!(sorted.len(), found.len(), "an address twice for {name}");
        sorted.into_iter().collect()
    })
}

const WEB: ServiceId = ServiceId([1; 16]);
const DB: ServiceId = ServiceId([2; 16]);

#[test]
fn a_service_leads_to_its_virtual_address_and_its_tasks_name_to_those_that_serve() {
    let mut zone = Zone::default();
    zone.put_service(WEB, &service(&["Web", "www"], &["10.0.0.2", "fd00::2"]));
    zone.put_endpoint(EndpointId([1; 16]), &endpoint(Some(1), "10.0.0.3", &["web.1.a"], true));
    zone.put_endpoint(EndpointId([2; 16]), &endpoint(Some(1), "10.0.0.4", &["web.2.b"], false));
    for name in ["web", "www"] {
        assert_eq!(found(&zone, name).unwrap(), ["10.0.0.2", "fd00::2"]);
        assert_eq!(found(&zone, &format!("tasks.{name}")).unwrap(), ["10.0.0.3"]);
    }
    assert_eq!(found(&zone, "web.1.a").unwrap(), ["10.0.0.3"]);
    assert_eq!(found(&zone, "web.2.b").unwrap(), [""; 0], "it exists, and does not serve");
    assert_eq!(found(&zone, "tasks.web.1.a"), None);
    assert_eq!(zone.addresses("web", Family::V6).unwrap(), ["fd00::2".parse::<IpAddr>().unwrap()]);
}

#[test]
fn rows_may_come_in_any_order() {
    let mut zone = Zone::default();
    zone.put_endpoint(EndpointId([1; 16]), &endpoint(Some(1), "10.0.0.3", &[], true));
    assert_eq!(found(&zone, "web"), None);
    zone.put_service(WEB, &service(&["web"], &[]));
    assert_eq!(found(&zone, "web").unwrap(), ["10.0.0.3"]);
    zone.remove_service(WEB);
    zone.put_service(WEB, &service(&["shop"], &[]));
    assert_eq!((found(&zone, "web"), found(&zone, "shop").unwrap()), (None, vec!["10.0.0.3".to_owned()]));
}

#[test]
fn services_that_share_an_alias_share_its_answer_and_come_before_tasks() {
    let mut zone = Zone::default();
    zone.put_service(WEB, &service(&["web", "front", "WEB"], &["10.0.0.2"]));
    zone.put_service(DB, &service(&["db", "front"], &[]));
    zone.put_endpoint(EndpointId([1; 16]), &endpoint(Some(2), "10.0.0.3", &["front", "own", "Own"], true));
    assert_eq!(found(&zone, "front").unwrap(), ["10.0.0.2", "10.0.0.3"]);
    assert_eq!(found(&zone, "tasks.front").unwrap(), ["10.0.0.3"]);
    zone.remove_service(WEB);
    zone.remove_service(DB);
    assert_eq!(found(&zone, "front").unwrap(), ["10.0.0.3"], "the task's own name is left");
    assert_eq!(found(&zone, "own").unwrap(), ["10.0.0.3"]);
}

#[test]
fn an_address_that_went_to_another_row_stays_there() {
    let mut zone = Zone::default();
    let address: IpAddr = "10.0.0.3".parse().unwrap();
    zone.put_endpoint(EndpointId([1; 16]), &endpoint(None, "10.0.0.3", &["old"], true));
    zone.put_endpoint(EndpointId([2; 16]), &endpoint(None, "10.0.0.3", &["new"], true));
    zone.remove_endpoint(EndpointId([1; 16]));
    assert_eq!(zone.name_of(address), Some(Some("new")));
    zone.put_endpoint(EndpointId([2; 16]), &endpoint(None, "10.0.0.4", &[], true));
    assert_eq!((zone.name_of(address), zone.name_of("10.0.0.4".parse().unwrap())), (None, Some(None)));
}

#[test]
fn the_last_resort_is_for_where_nothing_else_serves() {
    let mut zone = Zone::default();
    zone.put_service(ServiceId([1; 16]), &Service { names: vec!["web".to_owned()], virtual_addresses: vec![] });
    let mut row = endpoint(Some(1), "10.0.0.5", &["own"], true);
    row.serving = Serving::LastResort;
    zone.put_endpoint(EndpointId([5; 16]), &row);
    zone.put_endpoint(EndpointId([6; 16]), &endpoint(Some(1), "10.0.0.6", &[], true));
    assert_eq!(zone.addresses("web", Family::V4), Some(vec![[10, 0, 0, 6].into()]));
    assert_eq!(zone.addresses("own", Family::V4), Some(vec![[10, 0, 0, 5].into()]), "nothing else has that name");
    zone.remove_endpoint(EndpointId([6; 16]));
    assert_eq!(zone.addresses("tasks.web", Family::V4), Some(vec![[10, 0, 0, 5].into()]));
}

#[derive(Clone, Debug)]
enum Step {
    PutService(u8, Vec<u8>, bool),
    RemoveService(u8),
    PutEndpoint(u8, u8, Vec<u8>, Serving),
    RemoveEndpoint(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let names = || prop::collection::vec(0_u8..6, 0..3);
    let serving = prop::sample::select(vec![Serving::No, Serving::LastResort, Serving::Yes]);
    prop_oneof![
        (0_u8..4, names(), any::<bool>()).prop_map(|(id, names, vip)| Step::PutService(id, names, vip)),
        (0_u8..4).prop_map(Step::RemoveService),
        (0_u8..60, 0_u8..4, names(), serving)
            .prop_map(|(id, service, names, serving)| Step::PutEndpoint(id, service, names, serving)),
        (0_u8..60).prop_map(Step::RemoveEndpoint),
    ]
}

fn texts(names: &[u8]) -> Vec<String> {
    names.iter().map(|name| format!("n{name}")).collect()
}

fn service_row(id: u8, names: &[u8], vip: bool) -> Service {
    let address: IpAddr = [10, 1, 0, id].into();
    Service { names: texts(names), virtual_addresses: vip.then_some(address).into_iter().collect() }
}

fn endpoint_row(id: u8, service: u8, names: &[u8], serving: Serving) -> Endpoint {
    Endpoint {
        service: Some(ServiceId([service; 16])),
        addresses: vec![[10, 2, 0, id].into(), Ipv6Addr::from([u16::from(id); 8]).into()],
        names: texts(names),
        serving,
    }
}

proptest! {
    #[test]
    fn a_zone_is_a_function_of_its_rows(steps in prop::collection::vec(step(), 0..300)) {
        let mut zone = Zone::default();
        let (mut services, mut endpoints) = (BTreeMap::new(), BTreeMap::new());
        for step in steps {
            match step {
                Step::PutService(id, names, vip) => {
                    let row = service_row(id, &names, vip);
                    zone.put_service(ServiceId([id; 16]), &row);
                    services.insert(id, row);
                }
                Step::RemoveService(id) => {
                    zone.remove_service(ServiceId([id; 16]));
                    services.remove(&id);
                }
                Step::PutEndpoint(id, service, names, serving) => {
                    let row = endpoint_row(id, service, &names, serving);
                    zone.put_endpoint(EndpointId([id; 16]), &row);
                    endpoints.insert(id, row);
                }
                Step::RemoveEndpoint(id) => {
                    zone.remove_endpoint(EndpointId([id; 16]));
                    endpoints.remove(&id);
                }
            }
        }
        let mut fresh = Zone::default();
        endpoints.iter().for_each(|(&id, row)| fresh.put_endpoint(EndpointId([id; 16]), row));
        services.iter().for_each(|(&id, row)| fresh.put_service(ServiceId([id; 16]), row));
        for name in (0..6).flat_map(|name| [format!("n{name}"), format!("tasks.n{name}")]) {
            prop_assert_eq!(found(&zone, &name), found(&fresh, &name));
        }
        for id in 0..60 {
            for address in [IpAddr::from([10, 2, 0, id]), IpAddr::from([10, 1, 0, id])] {
                prop_assert_eq!(zone.name_of(address), fresh.name_of(address));
            }
        }
        prop_assert_eq!((zone.service_count(), zone.endpoint_count()), (services.len(), endpoints.len()));

        services.keys().for_each(|&id| zone.remove_service(ServiceId([id; 16])));
        endpoints.keys().for_each(|&id| zone.remove_endpoint(EndpointId([id; 16])));
        let left = (zone.names.len(), zone.members.len(), zone.reverse.len(), zone.services.len(), zone.endpoints.len());
        prop_assert_eq!(left, (0, 0, 0, 0, 0));
    }
}
