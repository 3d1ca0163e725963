//! Decisions about networks: which subnet and VNI a new one gets, the addresses of services, tasks and nodes, published
//! ports, and who is where for the nodes' tables. Pure; called by the control API, the scheduler and the dispatcher.

pub mod table;
