//! A [`Core`] to its saved state and back. What is read is checked as what a driver writes is, and for what no driver could have done.

use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::{Core, DRIVER_OK, FAILED, FEATURES_OK, ISR_CONFIG, ISR_QUEUE, Phase, QueueRegisters, STEPS};
use crate::ratelog::Chained;
use crate::state::RestoreError;
use crate::virtio::device::STATUS_NEEDS_RESET;
use crate::virtio::transport::StillActive;
use crate::virtio::transport::state::{BusState, TransportState};

impl Core {
    /// Become what `state` says, the device too.
    pub(super) fn restore(&mut self, state: &TransportState) -> Result<(), RestoreError> {
        let id = self.device.id().to_owned();
        let wrong = |field: &str, reason: String| RestoreError::new(&id, field, reason);
        if state.id != id {
            return Err(wrong("id", format!("it is of {}", state.id)));
        }
        // The device first: what it offers may depend on what it was.
        self.device.restore(&state.device)?;
        self.offered = self.device.features() | 1 << VIRTIO_F_VERSION_1;
        check_status(state).map_err(|reason| wrong("status", reason))?;
        let unknown = state.features & !self.offered;
        if state.status & FEATURES_OK != 0 && (unknown != 0 || state.features & 1 << VIRTIO_F_VERSION_1 == 0)
        {
            return Err(wrong(
                "features",
                format!("the guest uses {:#x}, and {:#x} can be had here", state.features, self.offered),
            ));
        }
        self.restore_queues(state, &wrong)?;
        if state.isr & !(ISR_QUEUE | ISR_CONFIG) != 0 {
            return Err(wrong("isr", format!("{:#x} has bits that there are not", state.isr)));
        }
        self.notices.restore(state.isr, state.generation);
        self.status.store(state.status, Ordering::SeqCst);
        self.accepted = state.features;
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        self.phase = if state.active { Phase::Paused } else { Phase::Idle };
        self.restored = true;
        Ok(())
    }

    fn restore_queues(
        &mut self,
        state: &TransportState,
        wrong: &dyn Fn(&str, String) -> RestoreError,
    ) -> Result<(), RestoreError> {
        if state.queues.len() != self.queues.len() {
            let (saved, is) = (state.queues.len(), self.queues.len());
            return Err(wrong("queues", format!("there are {saved} of them, and the device has {is}")));
        }
        let event_idx = state.features & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
        for (index, (queue, saved)) in self.queues.iter_mut().zip(&state.queues).enumerate() {
            *queue = QueueRegisters::restore(queue.max(), saved)
                .map_err(|(field, reason)| wrong(&format!("queues[{index}].{field}"), reason))?;
            // What it was not served with may be anything: the driver is not done, or its device needs a reset.
            if state.active && queue.ready {
                queue
                    .ring(&self.ram, event_idx)
                    .map_err(|error| wrong(&format!("queues[{index}]"), Chained(&error).to_string()))?;
            }
        }
        Ok(())
    }

    /// What is saved of it, on this transport.
    pub(crate) fn save(&self, bus: BusState) -> Result<TransportState, StillActive> {
        if self.phase == Phase::Active {
            return Err(StillActive(self.device.id().to_owned()));
        }
        Ok(TransportState {
            id: self.device.id().to_owned(),
            status: self.status(),
            active: self.phase == Phase::Paused,
            features: self.accepted,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            queue_select: self.queue_select,
            queues: self.queues.iter().map(QueueRegisters::save).collect(),
            isr: self.notices.isr(),
            generation: self.notices.generation(),
            bus,
            device: self.device.save(),
        })
    }
}

/// Whether a driver and a device can have come to this status.
fn check_status(state: &TransportState) -> Result<(), String> {
    let status = state.status;
    let known = STEPS.iter().fold(FAILED | STATUS_NEEDS_RESET, |known, (step, _)| known | step);
    let skipped = STEPS.iter().any(|(step, before)| status & step != 0 && status & before != *before);
    if status & !known != 0 || skipped || state.active && status & DRIVER_OK == 0 {
        let active = if state.active { "active" } else { "inactive" };
        return Err(format!("{status:#x} cannot be that of an {active} device"));
    }
    Ok(())
}
