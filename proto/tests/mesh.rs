//! The mesh over real TCP on loopback: who finds whom, who stays out, and what a work stream carries.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![expect(clippy::wildcard_enum_match_arm, reason = "a test waits for one kind of event")]

#[path = "mesh/node.rs"]
mod node;

use std::time::Duration;

use node::{LIMIT, Node, attempt, hello, pair, run_of};
use tokio::{task::JoinSet, time::timeout};
use tropa_proto::{
    bounded::{Blob, List},
    codec::Message as _,
    id::{AgentId, Incarnation},
    known::Known,
    mesh::{
        self, DialFailure, MeshConfig, MeshError, MeshEvent, STREAMS_PER_AGENT, WorkError, greet_agent,
        greet_coordinator,
    },
    message::{
        AgentState, Answer, FromAgent, Hello, MAX_BODY, MAX_RESULT, MAX_RESULT_FRAME, Question, Role, ToAgent,
    },
    secret::MeshSecret,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_agents_see_each_others_announcements() {
    let secret = MeshSecret::generate().unwrap();
    let mut first = Node::start(Role::Agent, Some(&secret), &[]).await;
    let mut second = Node::start(Role::Agent, Some(&secret), &[&first]).await;
    first.announce(1).await;
    second.announce(1).await;
    assert_eq!(first.announced(second.me()).await, second.announcement(1));
    assert_eq!(second.announced(first.me()).await, first.announcement(1));
    // What is published once both are there travels by gossip alone.
    first.announce(2).await;
    assert_eq!(second.announced(first.me()).await.seq, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_late_coordinator_pulls_the_roster_of_the_one_peer_it_knows() {
    let mut hub = Node::start(Role::Agent, None, &[]).await;
    let others =
        [Node::start(Role::Agent, None, &[&hub]).await, Node::start(Role::Agent, None, &[&hub]).await];
    for node in &others {
        node.announce(1).await;
    }
    let mut missing: Vec<_> = others.iter().map(Node::me).collect();
    hub.until("announcements", |event| {
        if let MeshEvent::Announced { from, .. } = event {
            missing.retain(|agent| *agent != from);
        }
        missing.is_empty().then_some(())
    })
    .await;
    let mut late = Node::start(Role::Coordinator, None, &[&hub]).await;
    let mut missing: Vec<_> = others.iter().map(Node::me).collect();
    late.until("roster", |event| {
        if let MeshEvent::Announced { from, .. } = event {
            missing.retain(|agent| *agent != from);
        }
        missing.is_empty().then_some(())
    })
    .await;
    // It then dials those of whom it was only told.
    let stream = late.mesh.open(others[1].me()).await;
    assert!(stream.is_ok(), "{stream:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_that_know_one_peer_connect_to_all_who_announce_themselves() {
    let hub = Node::start(Role::Agent, None, &[]).await;
    let mut first = Node::start(Role::Agent, None, &[&hub]).await;
    let second = Node::start(Role::Agent, None, &[&hub]).await;
    first.announce(1).await;
    second.announce(1).await;
    first.connected(second.me()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_secret_is_refused_by_name_within_a_second_and_hears_nothing() {
    let [ours, theirs] = [(); 2].map(|()| MeshSecret::generate().unwrap());
    for strangers_secret in [Some(&theirs), None] {
        let mut member = Node::start(Role::Agent, Some(&ours), &[]).await;
        member.announce(1).await;
        let mut stranger = Node::start(Role::Coordinator, strangers_secret, &[]).await;
        stranger.mesh.dial(member.address()).await;
        let why = timeout(Duration::from_secs(1), stranger.dial_failed()).await.expect("within a second");
        assert_eq!(why, DialFailure::WrongSecret);
        // A friend gets in by the same door afterwards, so what the stranger could have heard has been said.
        let mut friend = Node::start(Role::Coordinator, Some(&ours), &[&member]).await;
        friend.announced(member.me()).await;
        member.connected(friend.me()).await;
        while let Ok(event) = stranger.events.try_recv() {
            assert!(matches!(event, MeshEvent::Listening(_) | MeshEvent::DialFailed { .. }), "{event:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_number_that_does_not_rise_is_ignored() {
    let teller = Node::start(Role::Agent, None, &[]).await;
    let mut listener = Node::start(Role::Coordinator, None, &[&teller]).await;
    listener.connected(teller.me()).await;
    teller.announce(5).await;
    assert_eq!(listener.announced(teller.me()).await.seq, 5);
    for seq in [5, 4, 1, 6] {
        teller.announce(seq).await;
    }
    // Gossip between two nodes keeps its order, so whatever else was believed would come first.
    assert_eq!(listener.announced(teller.me()).await.seq, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_that_it_leaves_is_in_no_roster_any_more() {
    let mut hub = Node::start(Role::Agent, None, &[]).await;
    let leaver = Node::start(Role::Agent, None, &[&hub]).await;
    hub.connected(leaver.me()).await;
    leaver.announce(1).await;
    assert_eq!(hub.announced(leaver.me()).await.seq, 1);
    let mut goodbye = leaver.announcement(2);
    goodbye.state = AgentState::Leaving;
    leaver.mesh.publish(goodbye).await.unwrap();
    let leaver_id = leaver.me();
    assert_eq!(hub.announced(leaver_id).await.state, AgentState::Leaving);
    leaver.mesh.shutdown().await;
    hub.disconnected(leaver_id).await;
    let late = Node::start(Role::Coordinator, None, &[&hub]).await;
    let asked = async {
        loop {
            match late.mesh.ask(hub.me(), Question::Roster { from: 0, known: Known::nothing() }).await {
                Ok(answer) => return answer,
                Err(MeshError::NotConnected(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    };
    let answer = timeout(LIMIT, asked).await.unwrap();
    assert_eq!(answer, Answer::Roster { signed: List::default(), more: false });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_goodbye_that_is_said_on_leaving_gets_out() {
    let mut hub = Node::start(Role::Agent, None, &[]).await;
    let mut heard = 0;
    for _ in 0..5 {
        let leaver = Node::start(Role::Agent, None, &[&hub]).await;
        hub.connected(leaver.me()).await;
        leaver.announce(1).await;
        assert_eq!(hub.announced(leaver.me()).await.seq, 1);
        let mut goodbye = leaver.announcement(2);
        goodbye.state = AgentState::Leaving;
        leaver.mesh.publish(goodbye).await.unwrap();
        let left = leaver.me();
        leaver.mesh.shutdown().await;
        let came = |event| match event {
            MeshEvent::Announced { from, announcement } if from == left => {
                Some(announcement.state == AgentState::Leaving)
            }
            MeshEvent::Disconnected(peer) if peer == left => Some(false),
            _ => None,
        };
        heard += u32::from(hub.until("goodbye or end", came).await);
    }
    // Who leaves does not wait for long, and on a machine that is held up one may be in vain.
    assert!(heard >= 3, "{heard} of five goodbyes came before their connection had ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_description_is_asked_of_the_owner_and_a_coordinator_has_none() {
    let mut agent = Node::start(Role::Agent, None, &[]).await;
    let mut coordinator = Node::start(Role::Coordinator, None, &[&agent]).await;
    coordinator.connected(agent.me()).await;
    let (answer, ()) = tokio::join!(coordinator.mesh.ask(agent.me(), Question::Describe), async {
        let ticket = agent
            .until("question", |event| match event {
                MeshEvent::Asked { ticket, question: Question::Describe, .. } => Some(ticket),
                _ => None,
            })
            .await;
        agent.mesh.answer(ticket, Answer::Nothing).await;
    });
    assert_eq!(answer.unwrap(), Answer::Nothing);
    assert_eq!(agent.mesh.ask(coordinator.me(), Question::Describe).await.unwrap(), Answer::Nothing);
    let stranger = AgentId([1; 32]);
    assert!(matches!(agent.mesh.ask(stranger, Question::Describe).await, Err(MeshError::NotConnected(_))));
    assert!(matches!(agent.mesh.open(stranger).await, Err(MeshError::NotConnected(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_streams_opened_at_once_all_arrive() {
    const STREAMS: u64 = 200;
    let mut agent = Node::start(Role::Agent, None, &[]).await;
    let mut coordinator = Node::start(Role::Coordinator, None, &[&agent]).await;
    coordinator.connected(agent.me()).await;
    let mut opened = JoinSet::new();
    for number in 0..STREAMS {
        let (mesh, agent) = (coordinator.mesh.clone(), agent.me());
        opened.spawn(async move {
            let mut stream = mesh.open(agent).await.unwrap();
            let mine = Hello { incarnation: Incarnation(number), role: Role::Coordinator };
            greet_agent(&mut stream, mine).await.unwrap();
        });
    }
    let mut greeted = JoinSet::new();
    for _ in 0..STREAMS {
        let mut stream = agent.incoming().await;
        greeted.spawn(async move { greet_coordinator(&mut stream, hello(Role::Agent)).await.unwrap() });
    }
    let mut seen: Vec<_> = greeted.join_all().await.into_iter().map(|hello| hello.incarnation.0).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..STREAMS).collect::<Vec<_>>());
    opened.join_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_stream_more_than_may_be_open_waits_for_another_to_be_dropped() {
    let mut agent = Node::start(Role::Agent, None, &[]).await;
    let mut coordinator = Node::start(Role::Coordinator, None, &[&agent]).await;
    coordinator.connected(agent.me()).await;
    let mut open = Vec::new();
    for _ in 0..STREAMS_PER_AGENT {
        open.push(coordinator.mesh.open(agent.me()).await.unwrap());
        agent.incoming().await;
    }
    let next = coordinator.mesh.open(agent.me());
    tokio::pin!(next);
    assert!(timeout(Duration::from_millis(100), &mut next).await.is_err(), "there is no room");
    let (reader, writer) = open.pop().unwrap().split();
    drop(writer);
    assert!(timeout(Duration::from_millis(100), &mut next).await.is_err(), "half a stream holds its place");
    drop(reader);
    assert!(timeout(LIMIT, next).await.unwrap().is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_carries_the_largest_run_and_the_largest_result_even_when_dropped_right_after() {
    let (_agent, _coordinator, mut near, mut far) = pair().await;
    let run = run_of(MAX_BODY);
    let frame = FromAgent::Body(Blob::new(vec![0xcd; MAX_RESULT_FRAME]).unwrap());
    let sent = tokio::spawn({
        let (run, frame) = (run.clone(), frame.clone());
        async move {
            assert_eq!(far.recv().await.unwrap(), Some(run));
            for _ in 0..MAX_RESULT / MAX_RESULT_FRAME {
                far.send(&frame).await.unwrap();
            }
        }
    });
    near.send(&run).await.unwrap();
    let mut frames = 0;
    while let Some(received) = near.recv::<FromAgent>().await.unwrap() {
        assert_eq!(received, frame);
        frames += 1;
    }
    assert_eq!(frames, MAX_RESULT / MAX_RESULT_FRAME);
    sent.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_ends_for_the_other_side_whichever_it_is() {
    let (_agent, _coordinator, near, mut far) = pair().await;
    drop(near);
    assert_eq!(timeout(LIMIT, far.recv::<ToAgent>()).await.unwrap().unwrap(), None);
    let (_agent, _coordinator, mut near, far) = pair().await;
    drop(far);
    assert_eq!(timeout(LIMIT, near.recv::<FromAgent>()).await.unwrap().unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_above_its_cap_is_refused_by_its_length_alone() {
    let (_agent, _coordinator, mut near, mut far) = pair().await;
    // An order may be longer than a report, and here one side reads the other's kind.
    near.send(&run_of(MAX_RESULT_FRAME + (8 << 10))).await.unwrap();
    let refused = timeout(LIMIT, far.recv::<FromAgent>()).await.unwrap();
    let text = refused.unwrap_err().to_string();
    assert!(text.contains(&format!("above its cap of {}", FromAgent::CAP)), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_receive_and_a_cancelled_send_lose_nothing() {
    let (_agent, _coordinator, mut near, mut far) = pair().await;
    let long = run_of(MAX_BODY);
    let sender = tokio::spawn(async move {
        for no in 0..4 {
            // The window is smaller than the message, so this is cut off in its midst while nobody reads.
            let _ = timeout(Duration::from_millis(no * 10), near.send(&long)).await;
            near.send(&ToAgent::Ack(attempt(u32::try_from(no).unwrap()))).await.unwrap();
        }
        near
    });
    let (mut acks, mut runs) = (Vec::new(), 0);
    while acks.len() < 4 {
        match timeout(Duration::from_micros(300), far.recv::<ToAgent>()).await {
            Err(_cancelled) => {}
            Ok(Ok(Some(ToAgent::Ack(attempt)))) => acks.push(attempt.no),
            Ok(Ok(Some(ToAgent::Run(run)))) => {
                assert!(run.body.iter().all(|byte| *byte == 0xab));
                runs += 1;
            }
            Ok(other) => panic!("{other:?}"),
        }
    }
    assert_eq!(acks, [0, 1, 2, 3]);
    assert!(runs <= 4);
    drop(sender.await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_halves_work_at_once() {
    let (_agent, _coordinator, near, far) = pair().await;
    let (mut near_in, mut near_out) = near.split();
    let (mut far_in, mut far_out) = far.split();
    let (order, report) = (run_of(MAX_BODY), FromAgent::Body(Blob::new(vec![1; MAX_RESULT_FRAME]).unwrap()));
    // Neither side reads before it has written more than the window, so one direction must not wait for the other.
    let (sent, received, answered, taken) = tokio::join!(
        async {
            for _ in 0..8 {
                near_out.send(&order).await?;
            }
            Ok::<_, WorkError>(())
        },
        async {
            for _ in 0..8 {
                assert_eq!(far_in.recv::<ToAgent>().await?.as_ref(), Some(&order));
            }
            Ok::<_, WorkError>(())
        },
        async {
            for _ in 0..64 {
                far_out.send(&report).await?;
            }
            Ok::<_, WorkError>(())
        },
        async {
            for _ in 0..64 {
                assert_eq!(near_in.recv::<FromAgent>().await?.as_ref(), Some(&report));
            }
            Ok::<_, WorkError>(())
        },
    );
    for result in [sent, received, answered, taken] {
        result.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_does_not_begin_with_a_hello_of_the_other_role_is_refused() {
    let mut agent = Node::start(Role::Agent, None, &[]).await;
    let mut coordinator = Node::start(Role::Coordinator, None, &[&agent]).await;
    coordinator.connected(agent.me()).await;
    for first in [ToAgent::Cancel(attempt(1)), ToAgent::Hello(hello(Role::Agent))] {
        let mut near = coordinator.mesh.open(agent.me()).await.unwrap();
        let mut far = agent.incoming().await;
        near.send(&first).await.unwrap();
        let refused = greet_coordinator(&mut far, hello(Role::Agent)).await;
        assert!(matches!(refused, Err(WorkError::NotHello(_))), "{refused:?}");
    }
    // A run is larger than a hello may be, and is refused before it is read.
    let mut near = coordinator.mesh.open(agent.me()).await.unwrap();
    let mut far = agent.incoming().await;
    near.send(&run_of(64 << 10)).await.unwrap();
    let refused = greet_coordinator(&mut far, hello(Role::Agent)).await;
    assert!(matches!(refused, Err(WorkError::Codec(_))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_node_is_seen_as_disconnected_and_its_streams_end() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let victim = runtime.spawn(Node::start(Role::Agent, None, &[])).await.unwrap();
    let mut survivor = Node::start(Role::Coordinator, None, &[&victim]).await;
    survivor.connected(victim.me()).await;
    let mut stream = survivor.mesh.open(victim.me()).await.unwrap();
    // Without a goodbye: its tasks are dropped where they stand.
    runtime.shutdown_background();
    survivor.disconnected(victim.me()).await;
    assert!(matches!(timeout(LIMIT, stream.recv::<FromAgent>()).await.unwrap(), Ok(None) | Err(_)));
    assert!(matches!(survivor.mesh.open(victim.me()).await, Err(MeshError::NotConnected(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configured_peer_is_dialled_again_until_it_is_back() {
    let first = Node::start(Role::Agent, None, &[]).await;
    let address = first.address();
    let mut coordinator = Node::start(Role::Coordinator, None, &[&first]).await;
    coordinator.connected(first.me()).await;
    let id = first.me();
    first.mesh.shutdown().await;
    coordinator.disconnected(id).await;
    assert_eq!(coordinator.dial_failed().await, DialFailure::Refused);
    let mut config = MeshConfig::loopback([9; 32], Role::Agent);
    config.listen = vec![address];
    let (second, _events) = mesh::start(config).await.unwrap();
    coordinator.connected(second.me()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_connection_to_a_wanted_peer_heals() {
    let agent = Node::start(Role::Agent, None, &[]).await;
    let mut coordinator = Node::start(Role::Coordinator, None, &[&agent]).await;
    coordinator.connected(agent.me()).await;
    coordinator.mesh.close(agent.me()).await;
    coordinator.disconnected(agent.me()).await;
    coordinator.connected(agent.me()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_in_use_and_an_address_beyond_loopback_without_a_secret_are_refused() {
    let first = Node::start(Role::Agent, None, &[]).await;
    let mut config = MeshConfig::loopback([4; 32], Role::Agent);
    config.listen = vec![first.address()];
    let refused = mesh::start(config.clone()).await;
    assert!(matches!(refused, Err(MeshError::Listen { addr, .. }) if addr == first.address()), "{refused:?}");
    config.listen = vec!["0.0.0.0:0".parse().unwrap()];
    assert!(matches!(mesh::start(config).await, Err(MeshError::NeedsSecret(_))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_its_own_address_gives_up_on_it() {
    let mut node = Node::start(Role::Agent, None, &[]).await;
    node.mesh.dial(node.address()).await;
    assert_eq!(node.dial_failed().await, DialFailure::Myself);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_the_end_every_command_says_so() {
    let node = Node::start(Role::Agent, None, &[]).await;
    let handle = node.mesh.clone();
    node.mesh.shutdown().await;
    assert!(matches!(handle.open(AgentId([1; 32])).await, Err(MeshError::Ended)));
    assert!(matches!(handle.ask(AgentId([1; 32]), Question::Describe).await, Err(MeshError::Ended)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announcement_out_of_range_is_not_published() {
    let node = Node::start(Role::Agent, None, &[]).await;
    let mut wrong = node.announcement(1);
    wrong.width = 65;
    assert!(matches!(node.mesh.publish(wrong).await, Err(MeshError::Invalid(_))));
}
