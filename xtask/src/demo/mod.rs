//! `cargo xtask demo`: real software in pods, every row of Batchivo's tables driven, and netaudit's account compared
//! with the driver's own.

mod drive;
mod ledger;
mod rules;
mod scenario;
mod servers;
mod world;

use std::{path::Path, time::Instant};

use anyhow::Result;

use self::{drive::Driver, world::World};
use crate::tools::Tools;

pub fn run(root: &Path) -> Result<()> {
    let tools = Tools::find(root)?;
    let start = Instant::now();
    let world = World::new()?;
    println!("laid out in {:?}", start.elapsed());
    let _servers = servers::start(&world, &tools)?;
    println!("servers ready in {:?}", start.elapsed());
    let mut driver = Driver { world: &world, tools: &tools, ledger: Vec::new() };
    scenario::allowed(&mut driver)?;
    scenario::forbidden(&mut driver)?;
    scenario::admin_jobs(&mut driver, false)?;
    scenario::admin_jobs(&mut driver, true)?;
    println!("driven in {:?}", start.elapsed());
    for entry in &driver.ledger {
        println!("{}", serde_json::to_string(entry)?);
    }
    Ok(())
}
