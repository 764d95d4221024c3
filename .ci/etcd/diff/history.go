package main

import (
	"fmt"
	"slices"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/protobuf/proto"
)

// The most streams that are open at a time, and the most watches of one.
const (
	maxStreams = 3
	maxWatches = 12
)

// The key of the watch that each stream begins with. With it a stream always answers requests for progress.
const anchorKey = "anchor"

// history is one random history of calls, which both sides get in the same order.
type history struct {
	source *source
	sides  [2]*side
	// The live watches of each open stream, in the order of the streams.
	live   [][]int64
	counts counts
}

// counts is what a history consisted of.
type counts struct {
	calls, refusals, watches, events int
}

func (c *counts) add(other counts) {
	c.calls += other.calls
	c.refusals += other.refusals
	c.watches += other.watches
	c.events += other.events
}

// run makes some random steps, and compares what both sides answer.
func (h *history) run(steps int) error {
	defer h.closeAll()
	for range steps {
		if err := h.step(); err != nil {
			return err
		}
	}
	if err := h.settle(); err != nil {
		return err
	}
	return h.readAll()
}

func (h *history) step() error {
	s := h.source
	lease := pick(s, leases)
	switch n := s.IntN(100); {
	case n < 20:
		return h.call("Range", s.rangeRequest())
	case n < 25:
		return h.call("RangeStream", s.streamRequest())
	case n < 42:
		return h.call("Put", s.put())
	case n < 48:
		return h.call("DeleteRange", s.deletion())
	case n < 68:
		return h.call("Txn", s.txn())
	case n < 71:
		return h.compact()
	case n < 74:
		return h.call("LeaseGrant", s.grant())
	case n < 75:
		return h.chosenLease()
	case n < 77:
		return h.call("LeaseRevoke", &pb.LeaseRevokeRequest{ID: lease})
	case n < 80:
		return h.call("LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: lease, Keys: s.oneIn(2)})
	case n < 81:
		return h.call("LeaseLeases", &pb.LeaseLeasesRequest{})
	case n < 83:
		return h.call("LeaseKeepAlive", &pb.LeaseKeepAliveRequest{ID: lease})
	case n < 85:
		return h.openStream()
	case n < 94:
		return h.createWatch()
	case n < 97:
		return h.cancelWatch()
	case n < 98:
		return h.closeStream()
	case n < 99:
		return h.bulk()
	default:
		return h.settle()
	}
}

// call sends one call to both sides and compares their answers.
func (h *history) call(name string, request proto.Message) error {
	_, err := h.ask(call{name, request})
	return err
}

func (h *history) ask(call call) ([2]answer, error) {
	h.counts.calls++
	answers := ask(h.sides, call)
	for i, side := range h.sides {
		revision, err := normalise(call, answers[i])
		if err != nil {
			return answers, fmt.Errorf("%v\n  %s: %w", call, side.name, err)
		}
		if i == 0 {
			h.source.newest = max(h.source.newest, revision)
		}
	}
	if answers[0].err != nil {
		h.counts.refusals++
	}
	if !equal(answers[0], answers[1]) {
		return answers, h.differ(call, answers[0], answers[1])
	}
	return answers, nil
}

func (h *history) differ(what, one, other any) error {
	return fmt.Errorf("%v\n  %s: %v\n  %s: %v", what, h.sides[0].name, one, h.sides[1].name, other)
}

// chosenLease lets each side choose the id of a lease, and revokes it.
func (h *history) chosenLease() error {
	// etcd makes 2 of a shorter term. The lease is revoked before it expires, and nothing hangs on it if it isn't.
	grant := call{"LeaseGrant", &pb.LeaseGrantRequest{TTL: pick(h.source, []int64{-1, 0, 1, 2, 600})}}
	h.counts.calls++
	answers := ask(h.sides, grant)
	for i, side := range h.sides {
		granted, ok := answers[i].message.(*pb.LeaseGrantResponse)
		if !ok || answers[i].err != nil {
			continue
		}
		side.do(call{"LeaseRevoke", &pb.LeaseRevokeRequest{ID: granted.ID}})
		if _, err := normalise(grant, answers[i]); err != nil {
			return fmt.Errorf("%v\n  %s: %w", grant, side.name, err)
		}
	}
	if !equal(answers[0], answers[1]) {
		return h.differ(grant, answers[0], answers[1])
	}
	return nil
}

// compact compacts after all watches have caught up, because one that hasn't may or may not be canceled.
func (h *history) compact() error {
	if err := h.settle(); err != nil {
		return err
	}
	request := h.source.compaction()
	answers, err := h.ask(call{"Compact", request})
	if err == nil && answers[0].err == nil {
		h.source.compacted = request.Revision
	}
	return err
}

// readAll compares the newest pairs, and all pairs of each revision that is left.
func (h *history) readAll() error {
	for revision := max(h.source.compacted-1, 0); revision <= h.source.newest; revision++ {
		all := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Revision: revision}
		if err := h.call("Range", all); err != nil {
			return err
		}
	}
	return h.call("LeaseLeases", &pb.LeaseLeasesRequest{})
}

// both does something with both sides, at the same time, and names the side that fails.
func (h *history) both(what any, do func(*side) error) error {
	failures := make(chan error, len(h.sides))
	for _, side := range h.sides {
		go func() {
			err := do(side)
			if err != nil {
				err = fmt.Errorf("%v\n  %s: %w", what, side.name, err)
			}
			failures <- err
		}()
	}
	first, second := <-failures, <-failures
	if first != nil {
		return first
	}
	return second
}

func (h *history) openStream() error {
	if len(h.live) == maxStreams {
		return h.closeStream()
	}
	err := h.both("open a watch stream", func(side *side) error {
		stream, err := side.openStream()
		if err == nil {
			side.streams = append(side.streams, stream)
		}
		return err
	})
	if err != nil {
		return err
	}
	h.live = append(h.live, nil)
	return h.create(len(h.live)-1, &pb.WatchCreateRequest{Key: []byte(anchorKey)})
}

func (h *history) closeStream() error {
	if len(h.live) == 0 {
		return h.openStream()
	}
	if err := h.settle(); err != nil {
		return err
	}
	at := h.source.IntN(len(h.live))
	for _, side := range h.sides {
		side.streams[at].cancel()
		side.streams = slices.Delete(side.streams, at, at+1)
	}
	h.live = slices.Delete(h.live, at, at+1)
	return nil
}

func (h *history) closeAll() {
	for _, side := range h.sides {
		for _, stream := range side.streams {
			stream.cancel()
		}
		side.streams = nil
	}
}
