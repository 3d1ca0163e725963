//! The real `skep` program against a daemon made of canned answers, over a real socket: what is printed where, exit
//! codes, retries, signals, closed pipes.

#![allow(clippy::unwrap_used)]

mod fake;
mod run;

mod clients;
mod failures;
mod images;
mod listings;
mod networks;
mod nodes;
mod services;
mod swarm;
mod updates;
