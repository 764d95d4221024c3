package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// The time after which a message that must come counts as missing.
const watchTimeout = 20 * time.Second

// The interval of requests for progress. A store may leave one unanswered while a watch catches up.
const progressEvery = 30 * time.Millisecond

// The most bytes of a fragment: the limit of a request and what gRPC adds. A single event may be larger.
const maxFragment = 2 << 20

// stream is a watch stream of one side, with all that has arrived and was not compared yet.
type stream struct {
	sender pb.Watch_WatchClient
	cancel context.CancelFunc

	mutex   sync.Mutex
	arrived *sync.Cond
	// What arrived for each watch. Refused watches have the id -1.
	watches map[int64]*watch
	// The numbers of messages that say "created" and "canceled".
	created, canceled int
	// The watch that was created last; -1 if it was refused.
	newest int64
	// The revision of the last message of progress.
	progress int64
	// The reason why the stream ended.
	ended error
	// A message that no server may send.
	wrong error
}

// watch is what arrived for one watch: messages that say "created" or "canceled", and events.
type watch struct {
	log      []proto.Message
	last     int64
	fragment bool
	done     bool
}

func (s *side) openStream() (*stream, error) {
	ctx, cancel := s.context()
	sender, err := pb.NewWatchClient(s.conn).Watch(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	stream := &stream{sender: sender, cancel: cancel, watches: map[int64]*watch{}}
	stream.arrived = sync.NewCond(&stream.mutex)
	go stream.receive()
	return stream, nil
}

func (s *stream) receive() {
	for {
		message, err := s.sender.Recv()
		s.mutex.Lock()
		if err != nil {
			s.ended = err
		} else if wrong := s.take(message); wrong != nil && s.wrong == nil {
			s.wrong = fmt.Errorf("%w: %s", wrong, text(message))
		}
		s.arrived.Broadcast()
		s.mutex.Unlock()
		if err != nil {
			return
		}
	}
}

// take adds a message to the log of its watch, and returns what is wrong with it by itself.
func (s *stream) take(message *pb.WatchResponse) error {
	revision := header(message.Header)
	if message.WatchId == -1 && !message.Created && !message.Canceled {
		s.progress = revision
		return nil
	}
	of := s.watches[message.WatchId]
	if of == nil {
		of = &watch{}
		s.watches[message.WatchId] = of
	}
	if message.Created || message.Canceled {
		return s.takeControl(of, message)
	}
	if of.done {
		return fmt.Errorf("a message for a canceled watch")
	}
	return of.takeEvents(message, revision)
}

func (s *stream) takeControl(of *watch, message *pb.WatchResponse) error {
	if message.Created {
		s.created++
		s.newest = message.WatchId
		of.done = false
		of.last = 0
	}
	if message.Canceled {
		s.canceled++
		if of.done && message.WatchId != -1 {
			// etcd says so again when a watch is canceled that compaction has ended.
			return nil
		}
		of.done = true
		of.fragment = false
	}
	if len(message.Events) > 0 || message.Fragment {
		return fmt.Errorf("events in a message about a watch")
	}
	of.log = append(of.log, message)
	return nil
}

func (w *watch) takeEvents(message *pb.WatchResponse, revision int64) error {
	if message.Fragment && len(message.Events) > 1 && proto.Size(message) > maxFragment {
		return fmt.Errorf("a fragment of %d bytes", proto.Size(message))
	}
	// The events of a transaction come in one message, or in fragments of one message.
	continues := w.fragment
	w.fragment = message.Fragment
	for _, event := range message.Events {
		at := event.Kv.ModRevision
		if at < w.last || at == w.last && !continues && event == message.Events[0] {
			return fmt.Errorf("revision %d after %d", at, w.last)
		}
		if at > revision {
			return fmt.Errorf("an event of revision %d under a header of revision %d", at, revision)
		}
		w.last = at
		w.log = append(w.log, event)
	}
	if len(message.Events) == 0 {
		return fmt.Errorf("a message without events")
	}
	return nil
}

// wait waits until something holds of a stream. The stream is locked meanwhile.
func (s *stream) wait(what string, holds func() bool, retry func()) error {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	deadline := time.Now().Add(watchTimeout)
	ticker := time.AfterFunc(progressEvery, s.arrived.Broadcast)
	defer ticker.Stop()
	last := time.Now()
	for {
		switch {
		case s.wrong != nil:
			return s.wrong
		case holds():
			return nil
		case s.ended != nil:
			return fmt.Errorf("the stream ended: %v %q", status.Code(s.ended), status.Convert(s.ended).Message())
		case time.Now().After(deadline):
			return fmt.Errorf("no %s after %v", what, watchTimeout)
		}
		if retry != nil && time.Since(last) >= progressEvery {
			last = time.Now()
			retry()
		}
		ticker.Reset(progressEvery)
		s.arrived.Wait()
	}
}

// request sends a request, and waits for a message that says "created", or "canceled".
func (s *stream) request(request *pb.WatchRequest, what string, count *int) error {
	s.mutex.Lock()
	before := *count
	s.mutex.Unlock()
	if err := s.sender.Send(request); err != nil {
		return err
	}
	return s.wait(what, func() bool { return *count > before }, nil)
}

func (s *stream) create(request *pb.WatchCreateRequest) error {
	create := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: request}}
	return s.request(create, "message \"created\"", &s.created)
}

func cancelRequest(id int64) *pb.WatchRequest {
	cancel := &pb.WatchCancelRequest{WatchId: id}
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: cancel}}
}

// catchUp waits until all events up to a revision have arrived.
func (s *stream) catchUp(revision int64) error {
	request := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
	// A failed send ends the stream, which wait notices.
	ask := func() { _ = s.sender.Send(request) }
	ask()
	what := fmt.Sprintf("progress up to revision %d", revision)
	return s.wait(what, func() bool { return s.progress >= revision }, ask)
}

// ids returns the watches of which something has arrived.
func (s *stream) ids() []int64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	ids := []int64{}
	for id, watch := range s.watches {
		if len(watch.log) > 0 {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// drain returns what arrived for a watch, and forgets it.
func (s *stream) drain(id int64) []proto.Message {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	watch := s.watches[id]
	if watch == nil {
		return nil
	}
	log := watch.log
	watch.log = nil
	return log
}

// atCompaction normalises the events at the compacted revision. What etcd knows of them depends on how far compaction has come: the
// previous pairs, and a key's put before its deletion in the same revision.
func atCompaction(log []proto.Message, compacted int64) []proto.Message {
	last := map[string]*mvccpb.Event{}
	for _, message := range log {
		if event, ok := message.(*mvccpb.Event); ok && event.Kv.ModRevision <= compacted {
			event.PrevKv = nil
			last[fmt.Sprint(event.Kv.ModRevision, event.Kv.Key)] = event
		}
	}
	return slices.DeleteFunc(log, func(message proto.Message) bool {
		event, ok := message.(*mvccpb.Event)
		return ok && event.Kv.ModRevision <= compacted && last[fmt.Sprint(event.Kv.ModRevision, event.Kv.Key)] != event
	})
}

// newestWatch returns the id of the watch that was created last, or -1 if it was refused.
func (s *stream) newestWatch() int64 {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.newest
}
